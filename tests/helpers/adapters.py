"""Configurations of adapters, and the outcome of each: the table behind docs and tests."""

from typing import Any

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Name, class, arguments. `target_modules` are the seven projections if missing.
WORKING: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"r": 2}),
    "LoRA on all linear layers": ("LoraConfig", {"r": 2, "target_modules": "all-linear"}),
    "LoRA with dropout": ("LoraConfig", {"r": 2, "lora_dropout": 0.1}),
    "LoRA with the head": ("LoraConfig", {"r": 2, "target_modules": [*PROJECTIONS, "lm_head"]}),
    "LoRA in one layer": ("LoraConfig", {"r": 2, "layers_to_transform": [1]}),
    "rsLoRA": ("LoraConfig", {"r": 2, "use_rslora": True}),
    "DoRA": ("LoraConfig", {"r": 2, "use_dora": True}),
    "KaSA": ("LoraConfig", {"kasa_config": {}}),
    "MonteCLoRA": ("LoraConfig", {"monteclora_config": {}}),
    "QALoRA": ("LoraConfig", {"use_qalora": True}),
    "VeLoRA": ("LoraConfig", {"velora_config": {}}),
    "LoRA with patterns": ("LoraConfig", {"r": 2, "rank_pattern": {"q_proj": 4}, "exclude_modules": ["k_proj"]}),
    "LoRA and the final norm": ("LoraConfig", {"r": 2, "modules_to_save": ["model.norm"]}),
    "LoRA, embedding and head": ("LoraConfig", {"r": 2, "modules_to_save": ["embed_tokens", "lm_head"]}),
    "LoRA on the embedding": ("LoraConfig", {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}),
    "LoRA on embedding and head": ("LoraConfig", {"r": 2, "target_modules": ["embed_tokens", "lm_head"]}),
    "BOFT": ("BOFTConfig", {"boft_block_size": 8}),
    "C3A": ("C3AConfig", {"block_size": 16}),
    "DEFT": ("DeftConfig", {}),
    "DeLoRA": ("DeloraConfig", {}),
    "FourierFT": ("FourierFTConfig", {"n_frequency": 20}),
    "FRoD": ("FrodConfig", {}),
    "GLoRA": ("GloraConfig", {}),
    "GraLoRA": ("GraloraConfig", {}),
    "HiRA": ("HiraConfig", {}),
    "HRA": ("HRAConfig", {}),
    "IA3": ("IA3Config", {"feedforward_modules": ["down_proj"]}),
    "LayerNorm tuning": ("LNTuningConfig", {"target_modules": ["input_layernorm"]}),
    "LoHa": ("LoHaConfig", {"r": 2}),
    "LoKr": ("LoKrConfig", {"r": 2}),
    "MiSS": ("MissConfig", {"r": 4}),
    "OFT": ("OFTConfig", {"r": 0, "oft_block_size": 8}),
    "OSF": ("OSFConfig", {}),
    "PEANuT": ("PeanutConfig", {}),
    "PSOFT": ("PsoftConfig", {"r": 4}),
    "PVeRA": ("PveraConfig", {}),
    "RandLoRA": ("RandLoraConfig", {"r": 4}),
    "RoAd": ("RoadConfig", {"group_size": 16}),
    "SHiRA": ("ShiraConfig", {"r": 2, "random_seed": 0}),
    "SuperTuning": ("SupertuningConfig", {}),
    "TinyLoRA": ("TinyLoraConfig", {}),
    "UniLoRA": ("UniLoraConfig", {}),
    "VB-LoRA": ("VBLoRAConfig", {"vector_length": 8, "num_vectors": 16}),
    "VeRA": ("VeraConfig", {}),
    "WaveFT": ("WaveFTConfig", {"n_frequency": 50}),
}
# The same, and a part of the line that rejects it.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "AdaLoRA": ("AdaLoraConfig", {"total_step": 10}, "changes its ranks during training"),
    "AdaMSS": ("AdamssConfig", {}, "scikit-learn is required"),
    "Cartridge": ("CartridgeConfig", {"num_virtual_tokens": 4}, "virtual tokens"),
    "Multitask prompt tuning": ("MultitaskPromptTuningConfig", {"num_virtual_tokens": 4}, "virtual tokens"),
    "Adaption prompt": (
        "AdaptionPromptConfig",
        {"adapter_len": 4, "adapter_layers": 1, "target_modules": "self_attn"},
        "cannot be merged",
    ),
    "aLoRA": ("LoraConfig", {"r": 2, "alora_invocation_tokens": [5], "task_type": "CAUSAL_LM"}, "cannot be merged"),
    "Arrow": ("LoraConfig", {"arrow_config": {}}, "mixes adapters"),
    "BEFT": ("BeftConfig", {}, "trains biases"),
    "CPT": ("CPTConfig", {"task_type": "CAUSAL_LM", "cpt_token_ids": [1]}, "virtual tokens"),
    "Lily": ("LilyConfig", {}, "cannot be merged"),
    "OLoRA": ("LoraConfig", {"init_lora_weights": "olora"}, "changes the base's weights"),
    "PiSSA": ("LoraConfig", {"init_lora_weights": "pissa"}, "changes the base's weights"),
    "Poly": ("PolyConfig", {}, "a task ID"),
    "Prefix tuning": ("PrefixTuningConfig", {"num_virtual_tokens": 4}, "virtual tokens"),
    "Prompt tuning": ("PromptTuningConfig", {"num_virtual_tokens": 4}, "virtual tokens"),
    "P-tuning": ("PromptEncoderConfig", {"num_virtual_tokens": 4}, "virtual tokens"),
    "Shadow": ("ShadowConfig", {}, "cannot be merged"),
    "Trainable tokens": ("TrainableTokensConfig", {"token_indices": [5]}, "model.special_tokens"),
    "X-LoRA": ("XLoraConfig", {}, "mixes adapters"),
    "LoRA with bias": ("LoraConfig", {"lora_bias": True}, "layers without bias"),
    "DoRA on a head with a row of zeros": ("LoraConfig", {"use_dora": True, "target_modules": ["lm_head"]}, "of zeros"),
    "an unknown module": ("LoraConfig", {"target_modules": ["q_prj", "k_proj"]}, "it has embed_tokens, q_proj, k_proj"),
    "an unknown module to save": ("LoraConfig", {"modules_to_save": ["hed"]}, "names hed"),
}
# With new tokens.
REFUSED_WITH_TAGS: dict[str, tuple[str, dict[str, Any], str]] = {
    "LoHa": ("LoHaConfig", {}, "cannot train new-token embeddings"),
    "LoRA on the embedding": ("LoraConfig", {"target_modules": ["embed_tokens"]}, "cannot be combined with"),
    "LoRA and the head": ("LoraConfig", {"modules_to_save": ["lm_head"]}, "name both in `modules_to_save`, or neither"),
    "DoRA on the head": ("LoraConfig", {"use_dora": True, "target_modules": ["lm_head"]}, "DoRA"),
}
_WITHOUT_TAGS = {"LoRA on the embedding", "LoRA on embedding and head", "KaSA", "MonteCLoRA", "QALoRA", "VeLoRA"}
WITH_TAGS = [name for name, (kind, _) in WORKING.items() if kind == "LoraConfig" and name not in _WITHOUT_TAGS]


def with_defaults(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, with a small rank and the seven projections where the class has these fields."""
    import peft

    fields = getattr(peft, kind).__dataclass_fields__
    defaults = {"r": 4, "target_modules": PROJECTIONS}
    return {name: value for name, value in defaults.items() if name in fields} | arguments
