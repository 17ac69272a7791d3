from pathlib import Path

import pytest

import llmopt
from llmopt import demo, recipe
from llmopt.core.errors import UsageError

RECIPES = sorted((Path(llmopt.__file__).parents[1] / "recipes").glob("*.yaml"))
SMALL = """
name: small
model: builtin
cases:
  - backend: hf
    quantizations: [bf16, nf4-dq]
"""


@pytest.fixture
def load(tmp_path):
    def write_and_load(text):
        (tmp_path / "my-recipe.yaml").write_text(text)
        return recipe.load(tmp_path / "my-recipe.yaml")

    return write_and_load


@pytest.fixture
def refused(load):
    """The message, which must name the file, and the hint of a recipe that is not taken."""

    def check(text, match=None):
        with pytest.raises(UsageError, match=match) as caught:
            load(text)
        assert caught.value.hint
        return caught.value

    return check


def test_there_are_recipes():
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads(path):
    if recipe.is_search(path):
        model, _ = recipe.load_search(path)
        assert model.exists()
        return
    if "cases:" in path.read_text():
        plan = recipe.load(path)
        assert plan.cases
    else:
        plan = recipe.load_quantizations(path)
        assert plan.quantizations
    assert plan.model.exists()
    assert plan.calibration == "builtin" or Path(plan.calibration).exists()
    assert plan.quality_text.exists()


MADE = """
name: made
model: builtin
quantizations:
  - nf4
  - {name: gptq-int4-g128, format: gptq, for: hf}
"""


def test_quantizations_are_names_or_names_with_options(tmp_path):
    (tmp_path / "r.yaml").write_text(MADE)
    first, second = recipe.load_quantizations(tmp_path / "r.yaml").quantizations
    assert (first.name, first.format) == ("nf4", None)
    assert (second.name, second.format, second.engine) == ("gptq-int4-g128", "gptq", "hf")


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("nf4", "nf5", "unknown quantization 'nf5'"),
        ("format: gptq", "format: gguf", "not made in the layout"),
        ("for: hf", "fro: hf", "fro"),
        ("- nf4\n", "- 4\n", r"quantizations\[0\]"),
        ("model: builtin", "", "model"),
        ("- nf4\n", "- nf4\n  - name: nf4\n", "makes nf4 twice"),
    ],
)
def test_a_recipe_of_quantizations_that_makes_no_sense(tmp_path, old, new, match):
    (tmp_path / "r.yaml").write_text(MADE.replace(old, new))
    with pytest.raises(UsageError, match=match) as caught:
        recipe.load_quantizations(tmp_path / "r.yaml")
    assert "r.yaml" in caught.value.message
    assert caught.value.hint


def test_a_calibration_beside_the_recipe_is_found_and_a_data_sets_name_stays(tmp_path):
    (tmp_path / "mine.txt").write_text("text")
    (tmp_path / "r.yaml").write_text(MADE + "calibration: {text: mine.txt}")
    assert recipe.load_quantizations(tmp_path / "r.yaml").calibration == str(tmp_path / "mine.txt")
    (tmp_path / "r.yaml").write_text(MADE + "calibration: {text: some/set}")
    assert recipe.load_quantizations(tmp_path / "r.yaml").calibration == "some/set"


def test_the_demos_recipe_is_found():
    assert recipe.load(demo.recipe()).name == "demo"


def test_every_quantization_of_a_group_is_a_case(load):
    assert [(name, options.backend) for name, options in load(SMALL).cases] == [("bf16", "hf"), ("nf4-dq", "hf")]


def test_what_is_left_out_has_its_default(load):
    plan = load(SMALL)
    assert plan.workload.requests == 64
    assert plan.repeats == 1
    assert [limit.text for limit in plan.goal.limits] == ["kl<=0.1"]


def test_an_engine_gets_as_many_slots_as_there_are_users(load):
    plan = load(SMALL + "workload: {concurrency: 7}")
    assert {options.max_num_seqs for _, options in plan.cases} == {7}


def test_paths_are_relative_to_the_recipe(load, tmp_path):
    assert load(SMALL.replace("model: builtin", "model: models/mine")).model == tmp_path / "models/mine"


def test_a_goal_is_read(load):
    goal = load(SMALL + "goal: {optimize: latency, slos: ['tps_p50>20'], max_memory: 2GiB, max_kl: 0.05}").goal
    assert goal.optimize == "latency"
    assert [limit.text for limit in goal.limits] == ["tps_p50>20", "memory<=2GiB", "kl<=0.05"]


def test_no_file():
    with pytest.raises(UsageError, match=r"no recipe at /nowhere\.yaml"):
        recipe.load(Path("/nowhere.yaml"))


@pytest.mark.parametrize("text", ["", "5", "a: [", "name: x"])
def test_what_is_no_recipe(refused, text):
    assert "my-recipe.yaml" in refused(text).message


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"x\.yaml"):
        recipe.load(tmp_path / "x.yaml")


def test_an_unknown_field_is_named_with_its_place(refused):
    assert "my-recipe.yaml" in refused(SMALL + "workload: {request: 5}", r"`request`.*\$\.workload").message


def test_a_wrong_type_is_named_with_its_place(refused):
    refused(SMALL + "workload: {seed: many}", r"Expected `int`, got `str` - at `\$\.workload\.seed`")


def test_an_unknown_quantization_names_the_nearest(refused):
    assert "nf4-dq" in refused(SMALL.replace("nf4-dq", "nf4-qd"), "unknown quantization 'nf4-qd'").hint


def test_an_unknown_backend_names_the_nearest(refused):
    assert "hf" in refused(SMALL.replace("hf", "hff"), "unknown backend 'hff'").hint


def test_a_quantization_that_the_engine_does_not_load(refused):
    error = refused(
        SMALL.replace("backend: hf", "backend: llamacpp").replace("bf16, ", ""), "llamacpp does not load nf4-dq"
    )
    assert "hf" in error.hint


def test_a_recipe_without_a_case(refused):
    refused("{name: x, model: builtin, cases: []}", "no case")


@pytest.mark.parametrize(
    "text",
    [
        SMALL.replace("nf4-dq", "nf4-qd"),
        SMALL.replace("hf", "hff"),
        SMALL.replace("backend: hf", "backend: llamacpp"),
        SMALL + "goal: {slos: ['ttft_p95<500']}",
    ],
    ids=["quantization", "backend", "combination", "slo"],
)
def test_a_wrong_name_says_in_which_file_it_stands(refused, text):
    assert "my-recipe.yaml" in refused(text).message


@pytest.mark.parametrize("name", ["concurrency", "requests", "input_tokens", "output_tokens"])
def test_numbers_that_make_no_run_are_refused_before_anything_starts(refused, name):
    refused(SMALL + f"workload: {{{name}: 0}}", name.replace("_", "."))


def test_no_repeats_are_refused(refused):
    refused(SMALL + "repeats: 0", "repeats")


def test_a_workload_takes_the_options_of_bench(load):
    plan = load(
        SMALL + "workload: {rate: 20, arrival: poisson, duration: 30, input_tokens: 'uniform:16:64', slos: ['ttft<1s']}"
    )
    w = plan.workload
    assert (w.load, w.rate, w.arrival, w.duration_s, w.input_lengths) == ("open", 20, "poisson", 30, "uniform:16:64")


def test_a_workload_that_makes_no_run_is_refused(load):
    with pytest.raises(UsageError, match="different loads"):
        load(SMALL + "workload: {rate: 20, concurrency: 4}")


STEPS = """
name: steps
model: builtin
compare: steps
price_per_hour: 0.5
cases:
  - step: plain
    backend: hf
    quantizations: [bf16]
  - step: static
    backend: hf
    quantizations: [bf16]
    batching: static
"""


def test_steps_keep_their_names_and_options(load):
    plan = load(STEPS)
    assert plan.steps == ("plain", "static")
    assert [options.batching for _, options in plan.cases] == [None, "static"]
    assert plan.price_per_hour == 0.5


def test_a_step_without_a_name(refused):
    assert "a step needs a name" in refused(STEPS.replace("step: static", "threads: 1")).message


def test_a_step_of_two_quantizations(refused):
    assert "one quantization" in refused(STEPS.replace("[bf16]", "[bf16, nf4]")).message


def test_an_option_that_the_engine_lacks_is_refused_with_those_that_have_it(refused):
    found = refused(STEPS.replace("batching: static", "gpu_layers: 3"))
    assert "hf has no --gpu-layers" in found.message
    assert "llamacpp" in found.hint


def test_an_option_of_another_type(refused):
    assert "cases[1]" in refused(STEPS.replace("batching: static", "threads: many")).message


def test_an_option_that_does_not_exist_names_the_nearest(refused):
    assert "batching" in refused(STEPS.replace("batching: static", "baching: static")).hint


@pytest.mark.parametrize("price", ["-1", "0", ".nan", ".inf"])
def test_a_price_that_is_none(refused, price):
    assert "price_per_hour" in refused(STEPS.replace("0.5", price)).message


def test_steps_have_no_goal(refused):
    assert "not ranked" in refused(STEPS + "goal: {max_kl: 0.1}").message


def test_a_ranking_has_no_steps(refused):
    assert "compares steps" in refused(STEPS.replace("compare: steps", "compare: ranking")).message


def test_a_case_without_a_quantization(refused):
    assert "no quantization" in refused(SMALL.replace("[bf16, nf4-dq]", "[]")).message


OF_VLLM = "name: n\nmodel: builtin\ncases: [{{backend: {0}, quantizations: [bf16]{1}}}]\n"


@pytest.mark.parametrize(
    ("engine", "modules", "told"),
    [
        ("hf", "", "hf has no adapters: --adapter b"),
        ("vllm", ', lora_modules: ["a=style"]', "--adapter b: --lora-modules loads a"),
        ("vllm", ', lora_modules: ["b=nosuch"]', "no adapter in .*nosuch"),
    ],
)
def test_adapters_are_checked_before_anything_is_made(refused, tmp_path, engine, modules, told):
    (tmp_path / "style").mkdir()
    refused(OF_VLLM.format(engine, modules) + "workload: {adapters: [b]}", match=told)


def test_a_draft_and_adapters_lie_beside_the_recipe(load, tmp_path):
    (tmp_path / "draft").mkdir()
    plan = load(OF_VLLM.format("vllm", ', lora_modules: ["a=draft"], speculative_model: draft'))
    ((_, options),) = plan.cases
    assert options.lora_modules == (f"a={tmp_path / 'draft'}",)
    assert options.speculative_model == str(tmp_path / "draft")


def test_a_draft_that_is_not_there_is_refused_and_a_word_stays_a_word(load, refused):
    refused(OF_VLLM.format("vllm", ", speculative_model: drafts/small"), match="no draft at .*drafts/small")
    ((_, options),) = load(OF_VLLM.format("vllm", ", speculative_model: ngram")).cases
    assert options.speculative_model == "ngram"
