"""What gptqmodel is told, which a played module takes down."""

import sys
from types import SimpleNamespace

from llmopt.quantize.gptqmodel import configuration


def test_finished_layers_wait_on_disk_whatever_memory_there_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "gptqmodel", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gptqmodel.quantization", SimpleNamespace(QuantizeConfig=dict))
    told = configuration({"method": "gptq", "bits": 4, "group_size": 128}, "/somewhere")
    assert (told["offload_to_disk"], told["offload_to_disk_path"]) == (True, "/somewhere")
