"""Kernels that Inductor writes for a GPU never read back what they have stored. None is run: they are only written."""

import re
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import config
from torch._inductor.choices import InductorChoices
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from fc_lightning.models import compilation
from fc_lightning.models.compilation import PersistentRows, compile_layers
from fc_lightning.models.head_loss import _loss_and_gradient
from fc_lightning.models.lora import add_adapter
from fc_lightning.utils.pretrained import BaseModelError

GPU = torch.device("cuda", 0)
TOKENS = 512


def layer_graphs(width, lora):
    """The forward and the backward graph of a decoder layer of Gemma 3, traced on the CPU."""
    torch.manual_seed(0)
    shape = {"hidden_size": width, "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1}
    one_layer = {"vocab_size": 64, "num_hidden_layers": 1, "head_dim": 256, "layer_types": ["full_attention"]}
    model = AutoModelForCausalLM.from_config(Gemma3TextConfig(**shape, **one_layer), dtype=torch.bfloat16)
    decoder = model.get_decoder()
    if lora:
        add_adapter(model, LoraConfig(r=16, target_modules="all-linear"), [])
    graphs = []

    def keep(graph, inputs):
        graphs.append((graph, inputs))
        return graph.forward

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, decompositions=select_decomp_table())
    decoder.layers[0].compile(backend=backend, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = decoder(input_ids=torch.randint(64, (1, TOKENS)), use_cache=False).last_hidden_state
    hidden.float().sum().backward()
    return graphs


@pytest.fixture
def pretended_gpu(monkeypatch):
    """What Inductor asks for about the card before it writes kernels: an H100."""
    driver = pytest.importorskip("triton.runtime.driver").driver
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    monkeypatch.setattr(driver, "_active", SimpleNamespace(get_current_target=lambda: target))
    processors = {"multi_processor_count": 132, "major": 9, "warp_size": 32, "regs_per_multiprocessor": 65536}
    processors["max_threads_per_multi_processor"] = 2048
    card = SimpleNamespace(name="H100", gcnArchName="", minor=0, total_memory=80 << 30, **processors)
    properties = DeviceProperties(type="cuda", index=0, cc=90, max_threads_per_block=1024, **processors)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: card)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(DeviceProperties, "create", lambda _: properties)
    monkeypatch.setattr("torch._inductor.scheduler.has_triton", lambda *_: True)


def kernels(graph, inputs, choices):
    """The kernels that Inductor writes for a graph as if it ran on a GPU, by name."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": GPU}
    graph.recompile()
    with FakeTensorMode() as fake:
        inputs = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=GPU) for x in inputs]
    FakeTensorProp(graph, fake).propagate_dont_convert_inputs(*inputs)
    lowering = GraphLowering(graph, example_inputs=inputs)
    handlers = V.set_graph_handler(lowering), V.set_fake_mode(fake), V.set_debug_handler(DebugContext())
    with handlers[0], handlers[1], handlers[2], V.set_choices_handler(choices):
        lowering.run(*inputs)
        source = lowering.codegen()[0].value
    return dict(re.findall(r"def (triton_\w+)\(.*?\):\n(.*?)'''", source, re.DOTALL))


def reads_back(kernel):
    """Whether a kernel loads from a pointer after it has stored to it."""
    return any(f"tl.load({pointer} " in kernel[end:] for pointer, end in stores(kernel))


def stores(kernel):
    return [(match[1], match.end()) for match in re.finditer(r"tl\.store\((\w+)", kernel)]


def test_read_backs_are_found():
    assert reads_back("tl.store(out_ptr0 + (x0), tmp1)\ntl.load(out_ptr0 + (x0), mask)")
    assert not reads_back("tl.load(in_out_ptr0 + (x0), mask)\ntl.store(in_out_ptr0 + (x0), tmp1)")


# Wide rows are those of Gemma 2 2B. Without a LoRA, the norms are trained too.
@pytest.mark.parametrize(("width", "lora"), [(640, True), (2304, True), (640, False)])
def test_no_kernel_reads_back_what_it_has_stored(width, lora, pretended_gpu):
    graphs = layer_graphs(width, lora)
    assert len(graphs) == 2
    found = [kernels(graph, inputs, PersistentRows()) for graph, inputs in graphs]
    assert all(found)
    assert [name for named in found for name, kernel in named.items() if reads_back(kernel)] == []


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_no_kernel_of_the_loss_reads_back_what_it_has_stored(cap, weighted, pretended_gpu):
    tokens, vocabulary = 8, 262_144
    inputs = [torch.zeros(tokens, vocabulary, dtype=torch.bfloat16), torch.zeros(tokens, dtype=torch.long)]
    inputs += [torch.ones(tokens)] if weighted else []

    def loss(logits, labels, *weights):
        return _loss_and_gradient(logits, labels, cap, *weights or [None])

    graph = make_fx(loss, decomposition_table=select_decomp_table())(*inputs)
    written = kernels(graph, inputs, PersistentRows())
    assert written
    assert [name for name, kernel in written.items() if reads_back(kernel)] == []


def test_inductor_alone_writes_kernels_that_do(pretended_gpu):
    graph, inputs = layer_graphs(640, lora=True)[1]
    # If this fails, torch has mended its kernels, and `PersistentRows` can go.
    assert any(map(reads_back, kernels(graph, inputs, InductorChoices()).values()))


class Layers:
    """A model whose layers record how they are compiled."""

    def __init__(self):
        self.options = []
        self.layers = [SimpleNamespace(compile=lambda **options: self.options.append(options))]

    def get_decoder(self):
        return self


def test_layers_are_compiled_for_a_gpu_with_the_choices(monkeypatch):
    monkeypatch.setattr(config, "inductor_choices_class", None)
    model = Layers()
    compile_layers(model, GPU, "auto")
    assert config.inductor_choices_class is PersistentRows
    assert model.options == [{"dynamic": False}]


def test_an_old_torch_compiles_nothing_for_a_gpu(monkeypatch):
    monkeypatch.setattr(compilation, "_TAKES_CHOICES", False)
    model = Layers()
    compile_layers(model, GPU, "auto")
    assert model.options == []
    with pytest.raises(BaseModelError, match=r"needs torch 2\.11 or later"):
        compile_layers(model, GPU, True)
    compile_layers(model, torch.device("cpu"), True)
    assert model.options == [{"dynamic": None}]
