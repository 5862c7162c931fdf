"""A Llama of 135M parameters through every command, and the memory that each planned beside the memory that it took.

576 wide, 30 layers, a vocabulary of 49,152, thirty steps of AdamW from random weights; two batches of one row of 128
tokens, 2 threads. Everything is the command line's own, each command a process whose peak of resident memory the
system tells. About an hour and a half and 50 GB of disk; `--only spectrum` measures what the others need, and takes ten
minutes.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lite_probe as lp

STEPS, RATE, RAMP = 30, 3e-4, 10
WARM = ["--warm-batches", "4", "--lr", "1e-4"]
COMMANDS = {
    "spectrum": ["--top", "10", "--bottom", "0"],
    "replay": [
        "--optimizers",
        "adamw,muon,muon-lite,soap",
        *WARM,
        "--steps",
        "3",
        "--seeds",
        "1",
        "--rule",
        "trapezoid",
    ],
    "steps": ["--optimizers", "muon,soap", *WARM, "--step-batches", "16"],
    "subspace": ["--size", "3", "--warm-batches", "2", "--probes", "2"],
}
DATA = ["--data", "builtin:python-docs", "--tokenizer", "bytes", "--seq-len", "128", "--batch-size", "1"]
PLANNED = re.compile(r"plan: .*?, ([\d.]+)(?: to ([\d.]+))? GiB")


def make_model(folder: Path) -> Path:
    """Return the folder of the model, which is trained unless it is there."""
    model_folder = folder / "model"
    if model_folder.exists():
        return model_folder
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "untrained")
    task = lp.make_task(
        lp.open_checkpoint(folder / "untrained"),
        data="builtin:python-docs",
        tokenizer="bytes",
        seq_len=128,
        batch_size=2,
        eval_batches=1,
        train_batches=STEPS,
    )
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for step, batch in enumerate(task.train):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / RAMP)
        optimizer.zero_grad()
        total, count = task.loss(batch)
        (total / count).backward()
        optimizer.step()
    task.model.save_pretrained(model_folder)
    return model_folder


def measure(command: str, model: Path, folder: Path, memory: str) -> None:
    """Run a command to its end; report what it planned and what it took."""
    arguments = [command, str(model), *DATA, "--batches", "2", "--memory", memory, "--threads", "2"]
    arguments += [*COMMANDS[command], "--out", str(folder / "probe")]
    log, started = folder / f"{command}.log", time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen([sys.executable, "-m", "lite_probe", *arguments], stderr=said, stdout=said)
        _, status, used = os.wait4(process.pid, 0)
    text, code = log.read_text(), os.waitstatus_to_exitcode(status)
    process.returncode = code  # it has been waited for
    plan = PLANNED.search(text)
    if code or plan is None:
        sys.exit(f"{command} ended with {code}; {log} ends with:\n" + "\n".join(text.splitlines()[-5:]))
    planned, peak = [float(figure) for figure in plan.groups() if figure], used.ru_maxrss / 2**20
    print(
        f"{command:<9} planned {' to '.join(f'{figure:.1f}' for figure in planned)} GiB, peak {peak:.2f} GiB "
        f"({peak / planned[-1]:.2f}), {(time.perf_counter() - started) / 60:.0f} min",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the model, results and logs")
    parser.add_argument("--only", action="append", choices=[*COMMANDS], help="by default all, the spectrum first")
    parser.add_argument("--memory", default="14GiB")
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    model = make_model(chosen.folder)
    for command in COMMANDS:
        if chosen.only is None or command in chosen.only:
            measure(command, model, chosen.folder, chosen.memory)


if __name__ == "__main__":
    main()
