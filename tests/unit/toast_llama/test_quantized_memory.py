"""The memory of a process that loads a model in 4 bits: the model is never whole in full precision."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from toast_cli import registry
from toast_cli.backbones.quantized_linear import QuantizedLinear
from toast_cli.backbones.weight_formats import FormatName

STATUS = Path("/proc/self/status")


def read_own_memory() -> int:
    """Bytes that only this process holds, without the pages of files that it reads."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))


@pytest.mark.nightly
@pytest.mark.skipif(not STATUS.exists(), reason="Linux tells the memory of a process")
@pytest.mark.parametrize("kind", ["int8", "int4", "nf4"])
def test_loading_needs_less_than_the_weights_in_full_precision(tmp_path: Path, kind: FormatName) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes))
    whole = sum(weight.nbytes for weight in model.parameters())
    model.save_pretrained(tmp_path)
    del model
    QuantizedLinear.from_linear(torch.nn.Linear(64, 64), kind)(torch.zeros(1, 64))  # the library's own memory
    card = registry.load_backbone_card(f"llama:{tmp_path}")
    options, ended, samples = card.options(name=card.name, quantize=kind), threading.Event(), [read_own_memory()]

    def sample() -> None:
        while not ended.wait(0.001):
            samples.append(read_own_memory())

    thread = threading.Thread(target=sample)
    thread.start()
    backbone = card.build(options)
    ended.set()
    thread.join()
    assert len(samples) > 10 and max(samples) - samples[0] < 0.6 * whole
    assert sum(buffer.nbytes for buffer in backbone.module.buffers()) < 0.3 * whole
