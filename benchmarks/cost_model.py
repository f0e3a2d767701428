"""The tables of docs/scaling.md: the cost of a run, calculated from the shapes of the model.

python benchmarks/cost_model.py
"""

from dataclasses import dataclass

# Measured tokens/s of Gemma 2 2B on one H100: rows of PACK tokens, SUPERVISED of them supervised (results/gpu_h100.md).
MEASURED_RATE = 29_743
RANK = 16  # LoRA rank on the seven projections
TOKENS = 540  # tokens of a conversation: the median of real rows
SUPERVISED = 0.12  # share of the tokens
PACK = 8192  # tokens per device and micro-batch


@dataclass(frozen=True)
class Shape:
    """A model of the Gemma 2 family."""

    name: str
    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    inner: int
    vocabulary: int = 256_000
    window: int = 4096

    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's seven matrices."""
        query, key = self.heads * self.head_width, self.key_heads * self.head_width
        attention = [(self.width, query), (self.width, key), (self.width, key), (query, self.width)]
        return [*attention, (self.width, self.inner), (self.width, self.inner), (self.inner, self.width)]

    @property
    def body(self) -> int:
        """Weights of all layers."""
        return self.layers * sum(a * b for a, b in self.matrices())

    @property
    def head(self) -> int:
        return self.vocabulary * self.width

    @property
    def adapter(self) -> int:
        return self.layers * sum(RANK * (a + b) for a, b in self.matrices())

    def flops(self) -> float:
        """Operations per token in training, as `fc_lightning.models.flops.TrainingCost` counts them."""
        attention = 12 * self.heads * self.head_width * (TOKENS + 1) / 2 * self.layers
        return 4 * self.body + 6 * self.adapter + SUPERVISED * 4 * self.head + attention

    def fixed_bytes(self) -> float:
        """Base in bf16; adapter, its gradient and Adam's two moments in fp32."""
        return 2 * (self.body + self.head) + 16 * self.adapter

    def activations(self, tokens: int) -> float:
        """With checkpointing: all layer inputs and one layer's activations in bf16; 512 rows of fp32 logits twice."""
        inside = sum(a + b for a, b in self.matrices()) + 4 * self.width
        return 2 * tokens * (self.layers * self.width + inside) + 2 * 4 * 512 * self.vocabulary


SHAPES = [
    Shape("Gemma 2 2B", 26, 2304, 8, 4, 256, 9216),
    Shape("Gemma 2 9B", 42, 3584, 16, 8, 256, 14336),
    Shape("Gemma 2 27B", 46, 4608, 32, 16, 128, 36864),
]


def achieved_flops() -> float:
    """Required operations per second of the measured model, assumed for the others too."""
    return MEASURED_RATE * SHAPES[0].flops()


def clock(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    """Print the tables."""
    print("| model | weights | adapter | GFLOP per token | tokens/s per GPU | memory per GPU, DDP | of which fixed |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for shape in SHAPES:
        fixed, moving = shape.fixed_bytes() / 1e9, shape.activations(PACK) / 1e9
        rate = achieved_flops() / shape.flops()
        print(
            f"| {shape.name} | {(shape.body + shape.head) / 1e9:.2f} B | {shape.adapter / 1e6:.1f} M | "
            f"{shape.flops() / 1e9:.1f} | {rate:,.0f} | {fixed + moving:.0f} GB | {fixed:.0f} GB |"
        )
    print("\n| model | GPUs | DDP, per rank and step | FSDP2, per rank and micro-batch | FSDP2, fixed memory per GPU |")
    print("|---|---:|---:|---:|---:|")
    for shape in SHAPES:
        for gpus in (8, 64):
            share = (gpus - 1) / gpus
            reduced = share * 2 * 4 * shape.adapter
            gathered = share * (2 * 2 * (shape.body + shape.head) + 4 * shape.adapter)
            fixed = shape.fixed_bytes() / gpus
            print(
                f"| {shape.name} | {gpus} | {reduced / 1e9:.2f} GB | {gathered / 1e9:.1f} GB | {fixed / 1e9:.1f} GB |"
            )
    counts = (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    print("\n| model | GPUs | " + " | ".join(f"{count:,}" for count in counts) + " |")
    print("|---|---:|" + "---:|" * len(counts))
    for shape in SHAPES:
        for gpus in (1, 8, 64):
            rate = gpus * achieved_flops() / shape.flops()
            print(f"| {shape.name} | {gpus} | " + " | ".join(clock(n * TOKENS / rate) for n in counts) + " |")


if __name__ == "__main__":
    main()
