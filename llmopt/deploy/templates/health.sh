# Whether the engine in this container answers. The first time by a real completion of one token: engines answer to their
# health path long before, and one whose kernels cannot read the weights dies at its first request. From then on by the cheap
# path: under full load a completion would wait behind those of users, and a healthy replica would be called ill.
if [ -e {{ answered | sh }} ]; then
    exec {{ later | map("sh") | join(" ") }}
fi
{{ first | map("sh") | join(" ") }} && : > {{ answered | sh }}
