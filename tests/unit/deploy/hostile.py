"""Names that nobody should give, and that nothing may break on."""

from __future__ import annotations

from hypothesis import strategies as st

WORDS = (
    "a b", "a'b", 'a"b', "a\nb", "a\n\n b\n", " a", "a ", "\t", "", "-rf", "--x=y", "'", "''", "\\", "\\n", "a\\",
    "$HOME", "$(HOME)", "$$(HOME)", "$", "$é", "${A:-b}", "%i", "%%", "`id`", "{{ .Values.image }}", "{% x %}", "{{",
    "#", "a #b", "a: b", "- a", "*a", "&a", "!a", "|", ">", "@", "]", "<a>&",
    "yes", "no", "null", "~", "1e3", "0o17", "0x1f", "1_0", "12:30", "2026-11-22", ".inf",
    "é", "模型", "😀", "\u2028", "\x85", "\x7f", "\x01", "a\rb", "\ufeff",
)  # fmt: skip
# No NUL, which no program can be given, and no halves of characters, which no file can hold.
text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=12)
word = st.one_of(st.sampled_from(WORDS), text)
words = st.lists(word, min_size=1, max_size=6)
