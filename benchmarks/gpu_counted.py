"""Count a training step on a GPU without one: kernels, operations, casts, waits and peak memory.

    python benchmarks/gpu_counted.py --output benchmarks/results/gpu_counted.md

The module and Lightning's trainer run two optimizer steps of two micro-batches under torch's FakeTensorMode: tensors
have a shape and the device `cuda:0`, and no data, so that neither a GPU nor memory is needed. Models have the shapes of
their configurations in transformers, the LoRA and the rows of `gpu.py`, and eight new tokens. Decoder layers are not
compiled. Flex attention counts as one kernel forward and two backward; the pointwise part of the loss, which is
compiled on a GPU, counts as two.

- kernels: operations that read or write memory of the device; lists of tensors (`_foreach_…`) count once
- operations: those of matrix products and attention
- casts: kernels that only change the precision
- waits: the CPU waits for the device: a value is read, or a copy is not made in the background
- peak memory: of tensors, in blocks of 512 bytes; what an allocator loses between them is not counted
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections import Counter
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import _foreach_supported_types
from torch.utils import _foreach_utils as foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig

from fc_lightning.data.collator import Batch, PackingCollator
from fc_lightning.models import head_loss
from fc_lightning.models.flops import attended_pairs
from fc_lightning.models.lora import add_adapter, add_token_rows
from fc_lightning.models.memory import estimate_training_bytes
from fc_lightning.training.module import FunctionCallingModule
from gpu import lora, random_documents

SMALL = {"num_hidden_layers": 18, "hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4}
MODELS = {
    "Gemma 2 2B": Gemma2Config(),
    "Gemma 3 1B": Gemma3TextConfig(num_hidden_layers=26, hidden_size=1152, intermediate_size=6912,
                                   num_attention_heads=4, num_key_value_heads=1, sliding_window=512),
    "Gemma 3 270M": Gemma3TextConfig(**SMALL, num_key_value_heads=1, sliding_window=512),
}  # fmt: skip
SHARE = 0.12  # of the tokens, supervised
TITLE = """# A training step on a GPU, counted

`python benchmarks/gpu_counted.py --output benchmarks/results/gpu_counted.md`, without a GPU: nothing here was measured
on one. One row is a micro-batch, 12 % of its tokens are supervised; decoder layers are not compiled. What is counted,
and how, is at the top of the script. The estimate is the one that `model.gradient_checkpointing: auto` decides by, with
its distance from the counted peak."""
KINDS = "Kernels of the first line by kind:"
NOTES = "\n## Notes\n"
NO_KERNEL = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_unsafe_view"}
aten = torch.ops.aten


class Meter(TorchDispatchMode):
    """Counts what reaches the device. There is no data: a value that is read is 0 on the device, and 1 elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._pin_memory.default:
            return args[0].clone()
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            if args[0].device.type == "cpu":
                return 1
            self.counts["waits"] += 1
            return 0.0
        out = func(*args, **kwargs)
        inputs, outputs = ([x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in (args, out))
        devices = {x.device.type for x in (*inputs, *outputs)}
        if "cuda" not in devices:
            return out
        for tensor in outputs:
            self.track(tensor)
        namespace, name = func._schema.name.split("::")
        if func.is_view or namespace == "prim" or name in NO_KERNEL:
            return out
        if "cpu" in devices and name in ("_to_copy", "copy_"):  # scalars in other operations are no copies
            if not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))):
                self.counts["waits"] += 1
            return out
        self.kernel(name)
        if name == "_to_copy" and inputs[0].dtype != outputs[0].dtype:
            self.counts["casts"] += 1
        if flops := flop_registry.get(func._overloadpacket):
            self.counts["flops"] += flops(*args, **kwargs, out_val=out)
        return out

    def read_list(self, tensor: FakeTensor) -> list[float]:
        """Reading a list is one copy."""
        self.counts["waits"] += 1
        return [0.0] * tensor.numel()

    def kernel(self, name: str, number: int = 1) -> None:
        self.counts["kernels"] += number
        self.kernels[name] += number

    def track(self, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cuda" or (storage := tensor.untyped_storage())._cdata in self.known:
            return
        size = -(-storage.nbytes() // 512) * 512
        self.known.add(storage._cdata)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.release, storage._cdata, size)

    def release(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


class CountedAttention(torch.autograd.Function):
    """Flex attention: its kernels, and the tensors that they write."""

    meter: Meter
    documents: list[tuple[int, int, int]]

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, window: int | None) -> Any:
        pairs = sum(attended_pairs(end - start, window) for _, start, end in CountedAttention.documents)
        ctx.flops = 4 * pairs * query.shape[1] * query.shape[-1]
        CountedAttention.meter.kernel("flex_attention")
        CountedAttention.meter.counts["flops"] += ctx.flops
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        CountedAttention.meter.kernel("flex_attention_backward", 2)
        CountedAttention.meter.counts["flops"] += 2.5 * ctx.flops  # scores are computed again
        return (*map(torch.empty_like, ctx.saved_tensors[:3]), None)


def counted_attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **_: Any) -> Any:
    return CountedAttention.apply(query, key, value, module.sliding_window).transpose(1, 2).contiguous(), None


def fused_loss(logits: torch.Tensor, labels: Any, cap: Any, weights: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the compiled part of the loss writes."""
    CountedAttention.meter.kernel("fused_loss", 2)
    return logits.new_empty((), dtype=torch.float32), torch.empty_like(logits)


class NamedCuda(CPUAccelerator):
    """Lets Lightning place everything on a device that is only a name."""

    def setup_device(self, device: torch.device) -> None:
        pass


class OnNamedCuda(SingleDeviceStrategy):
    """Leaves the model where it is."""

    def model_to_device(self) -> None:
        pass

    def teardown(self) -> None:
        pass


class Snapshots(Callback):
    """The counts of the last micro-batch, and those of the optimizer step after it."""

    def __init__(self, meter: Meter):
        self.meter = meter
        self.micro: Counter[str] = Counter()
        self.step: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()

    def on_train_batch_start(self, *_: Any) -> None:
        self.meter.counts.clear()
        self.meter.kernels.clear()

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.micro, self.kinds = self.meter.counts.copy(), self.meter.kernels.copy()
        self.meter.counts.clear()

    def on_train_batch_end(self, *_: Any) -> None:
        self.step = self.meter.counts.copy()


def pretend_cuda() -> None:
    """Answer the questions that Python code asks about the card."""
    card = SimpleNamespace(shared_memory_per_block_optin=232_448)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    torch.cuda.get_device_properties = lambda *_: card  # type: ignore[assignment]
    for types in (foreach_utils._foreach_supported_types, _foreach_supported_types):
        types.append(FakeTensor)  # by which lists of parameters are updated together
    FakeTensor.__deepcopy__ = lambda tensor, memo: tensor.clone()  # type: ignore[method-assign]
    head_loss._compiled = lambda: fused_loss  # type: ignore[assignment]
    AttentionInterface.register("flex_attention", counted_attention)


def move(model: nn.Module, device: torch.device) -> None:
    """Give a model fake tensors; matrices that are tied stay so."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and id(old) not in moved:
                    new = torch.empty_like(old, device=device)
                    is_parameter = isinstance(old, nn.Parameter)
                    moved[id(old)] = nn.Parameter(new, old.requires_grad) if is_parameter else new
                tensors[name] = moved.get(id(old))


def make_batch(length: int, vocabulary: int) -> Batch:
    pack: list[Any] = []
    for document in random_documents(length, SHARE, vocabulary, 2 * length):
        if sum(len(one["input_ids"]) for one in [*pack, document]) <= length:
            pack.append(document)
    return PackingCollator(0, pad_to=length)([pack])


def count(name: str, length: int, checkpointing: bool) -> dict[str, Any]:
    """Count a training step in this process, which has loaded `fake_cuda.cpp`."""
    pretend_cuda()
    config = MODELS[name]
    batch = make_batch(length, config.vocab_size)
    meter = CountedAttention.meter = Meter()
    CountedAttention.documents = batch["documents"]
    FakeTensor.tolist = lambda tensor: meter.read_list(tensor)  # type: ignore[method-assign]
    device = torch.device("cuda", 0)
    module = FunctionCallingModule(name, peft=lora(), gradient_checkpointing=checkpointing)
    strategy = OnNamedCuda(device, NamedCuda(), precision_plugin=MixedPrecision("bf16-mixed", "cuda"))
    snapshots = Snapshots(meter)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="flex_attention")
        pieces = {token: [1, 2] for token in range(10, 18)}
        add_token_rows(model, pieces)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        module.model = add_adapter(model, lora(), list(pieces)).train()
    with FakeTensorMode(allow_non_fake_inputs=True), meter:
        move(module.model, device)
        weights, meter.peak = meter.live, 0
        trainer = Trainer(
            strategy=strategy, max_steps=2, accumulate_grad_batches=2, gradient_clip_val=1.0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[snapshots],
        )  # fmt: skip
        trainer.fit(module, DataLoader([batch] * 4, batch_size=1, collate_fn=itemgetter(0)))
    supervised = min(module.head_chunk, batch["num_supervised"])
    estimate = weights + estimate_training_bytes(module.model, length, 0, supervised, checkpointing, True, device)
    return {
        "model": name,
        "length": length,
        "checkpointing": checkpointing,
        "micro": snapshots.micro,
        "step": snapshots.step,
        "kinds": snapshots.kinds,
        "weights": weights,
        "peak": meter.peak,
        "estimate": estimate,
    }


def build_device(folder: str) -> str:
    """Compile `fake_cuda.cpp`, which must be loaded before torch."""
    torch_folder = Path(torch.__file__).parent
    headers = [torch_folder / "include", torch_folder / "include/torch/csrc/api/include"]
    library, binaries = str(Path(folder) / "fake_cuda.so"), torch_folder / "lib"
    command = ["c++", "-shared", "-fPIC", "-std=c++20", *(f"-I{header}" for header in headers)]
    command += [str(Path(__file__).with_name("fake_cuda.cpp")), f"-L{binaries}", "-lc10", "-ltorch_cpu"]
    try:
        subprocess.run([*command, f"-Wl,-rpath,{binaries}", "-o", library], check=True)
    except FileNotFoundError:
        sys.exit("a C++ compiler is needed (c++), for the few lines that stand for a GPU")
    return library


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| model | row | checkpointing | kernels | casts | GFLOP | waits | kernels, step | waits, step | weights, GB | "
        "peak, GB | estimate, GB |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in results:
        micro, step = one["micro"], one["step"]
        share = one["estimate"] / one["peak"] - 1
        cells = [one["model"], f"{one['length']:,}", "on" if one["checkpointing"] else "off", f"{micro['kernels']:,}"]
        cells += [f"{micro['casts']:,}", f"{micro['flops'] / 1e9:,.0f}", f"{micro.get('waits', 0)}"]
        cells += [f"{step['kernels']:,}", f"{step.get('waits', 0)}", f"{one['weights'] / 1e9:.2f}"]
        cells += [f"{one['peak'] / 1e9:.2f}", f"{one['estimate'] / 1e9:.2f} ({share:+.1%})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def kinds(one: dict[str, Any]) -> str:
    most = sorted(one["kinds"].items(), key=lambda pair: -pair[1])[:16]
    return f"{one['model']}, rows of {one['length']:,}: " + ", ".join(f"{name} {number:,}" for name, number in most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="Markdown file; text after its table of kernels is kept")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--case", help=argparse.SUPPRESS)  # in a process of its own, as JSON
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(count(*json.loads(arguments.case))))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "LD_PRELOAD": build_device(folder)}
        for case in itertools.product(arguments.models, arguments.lengths, (False, True)):
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            results.append(json.loads(process.stdout.splitlines()[-1]))
            print(table(results[-1:]).splitlines()[-1], flush=True)
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "lightning"))
    text = "\n\n".join([TITLE, versions + ".", table(results), KINDS, kinds(results[0])]) + "\n"
    if arguments.output is None:
        print(text)
        return
    kept = arguments.output.read_text(encoding="utf-8") if arguments.output.is_file() else ""
    _, heading, rest = kept.partition(NOTES)
    arguments.output.write_text(text + heading + rest, encoding="utf-8")


if __name__ == "__main__":
    main()
