"""An export beside its own figures: HF PEFT loads the shared part and each expert, llama.cpp applies the GGUF adapters.

usage: export.py FOLDER
FOLDER holds task.json, model/ (Hugging Face), generation/ (the export) and logits.safetensors (ours), as
`tests/export.rs` writes them. Exit code 1 when anything differs by more than it may.
"""

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import torch
from llama_cpp import Llama
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import LlamaForCausalLM

# Largest difference of a logit in f32.
PEFT_BOUND = 1e-3
# What an adapter changes in llama.cpp beside what it changes here, as a share of its size, over weights of f32.
GGUF_BOUND = 0.01
# Over quantised weights llama.cpp rounds activations to 8 bits. The change of an adapter is the difference of two such
# answers, so that it may be off by as much as both: this many times what llama.cpp is off without any adapter.
QUANTISED_BOUND = 2.0
# Numbers of keys and values, as GGML numbers its types: f32.
F32 = 0


def peft_logits(folder, task):
    """Logits of the last positions by name, of PEFT."""
    base = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager").eval()
    ids = torch.tensor([task["ids"]])

    def last(model):
        with torch.no_grad():
            return model(ids).logits[0, -task["compared"] :].numpy()

    found = {"base": last(base)}
    generation = folder / "generation"
    model = PeftModel.from_pretrained(base, generation / "shared", adapter_name="shared").eval()
    found["shared"] = last(model)
    for name in task["experts"]:
        model.load_adapter(generation / "experts" / name, adapter_name=name)
        # Both are active: PEFT adds what each adds, so that the gate of the expert is one.
        model.base_model.set_adapter(["shared", name])
        found[f"shared+{name}"] = last(model)
    return found


def gguf_logits(path, task, adapters):
    """Logits of the last positions, of llama.cpp with adapters at full strength."""
    llama = Llama(path, n_ctx=256, logits_all=True, verbose=False, n_threads=2, type_k=F32, type_v=F32)
    loaded = [llama_cpp.llama_adapter_lora_init(llama._model.model, str(adapter).encode()) for adapter in adapters]
    if not all(loaded):
        raise SystemExit(f"llama.cpp does not take {adapters}")
    if loaded:
        pointers = (llama_cpp.llama_adapter_lora_p_ctypes * len(loaded))(*loaded)
        scales = (ctypes.c_float * len(loaded))(*([1.0] * len(loaded)))
        if llama_cpp.llama_set_adapters_lora(llama._ctx.ctx, pointers, len(loaded), scales):
            raise SystemExit("llama.cpp does not apply the adapters")
    llama.eval(task["ids"])
    return np.array(llama.scores[: len(task["ids"])][-task["compared"] :], dtype=np.float64)


def gguf_holds(path, task, ours, gguf, bound):
    """Whether every adapter changes what it changes here; `bound` tells what it may be off by."""
    base = gguf_logits(path, task, [])
    noise = float(np.linalg.norm(base - ours["base"]))
    held = True
    for name in ["shared"] + [f"shared+{name}" for name in task["experts"]]:
        change = gguf_logits(path, task, [gguf / f"{part}.gguf" for part in name.split("+")]) - base
        wanted = ours[name].astype(np.float64) - ours["base"]
        off, size = float(np.linalg.norm(change - wanted)), float(np.linalg.norm(wanted))
        most, words = bound(noise, size)
        held &= off <= most
        print(f"llama.cpp  {name:28} change of {size:.3f} is off by {off:.3f} (bound {most:.3f}: {words})")
    return held


def main():
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    ours = load_file(folder / "logits.safetensors")
    held = True
    for name, theirs in peft_logits(folder, task).items():
        apart = float(np.abs(theirs - ours[name]).max())
        moved = float(np.abs(ours[name] - ours["base"]).max())
        held &= apart <= PEFT_BOUND
        print(f"peft       {name:28} differs by {apart:.2e} (bound {PEFT_BOUND:.0e}); the adapter moves logits by {moved:.2f}")
    gguf = folder / "generation" / "gguf"
    print("weights of f32:")
    held &= gguf_holds(task["plain_gguf"], task, ours, gguf, lambda noise, size: (GGUF_BOUND * size, "1 % of it"))
    print("weights as quantised:")
    twice = lambda noise, size: (QUANTISED_BOUND * noise, f"twice the {noise:.3f} without adapter")
    held &= gguf_holds(task["gguf"], task, ours, gguf, twice)
    raise SystemExit(0 if held else 1)


if __name__ == "__main__":
    main()
