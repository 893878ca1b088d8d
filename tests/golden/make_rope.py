"""Makes tests/golden/rope.json: rotary frequencies, scaled in each of the ways that transformers knows.

    python tests/golden/make_rope.py

Needs `pip install edgert[golden]`. Every case is what a config.json says, and what `ROPE_INIT_FUNCTIONS` make of it for
each number of tokens.
"""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

SIZES = {"hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1,
         "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 1024}
SHORT, LONG = [1.0 + 0.03 * i for i in range(12)], [1.1 + 0.7 * i for i in range(12)]
CASES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.5},
    "linear, of transformers 4": {"type": "linear", "factor": 2.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    "yarn, a short original context": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16},
    "yarn, other borders": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256,
                            "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn, attention given": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256,
                              "attention_factor": 0.8},
    "yarn, mscale": {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "mscale": 0.7,
                     "mscale_all_dim": 1.0},
    "yarn, factor from the contexts": {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 128},
    "yarn, factor below 1": {"rope_type": "yarn", "factor": 0.5, "original_max_position_embeddings": 128},
    "longrope": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                 "original_max_position_embeddings": 256},
    "longrope, factor given": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "factor": 6.0,
                               "original_max_position_embeddings": 256},
    "longrope, attention given": {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG,
                                  "attention_factor": 1.3, "original_max_position_embeddings": 256},
}


def main() -> None:
    made = []
    for name, rope in CASES.items():
        for theta, values in ((10000.0, SIZES), (1000.0, {**SIZES, "head_dim": 24})):
            given = {**values, "rope_scaling": {**rope}, "rope_theta": theta}
            config = transformers.MistralConfig(**{**given, "rope_scaling": {**rope, "rope_theta": theta}})
            function = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
            for tokens in (256, 257) if "longrope" in name else (256,):
                frequencies, magnitude = function(config, "cpu", seq_len=tokens)
                made.append({"name": name, "config": given, "tokens": tokens, "magnitude": float(magnitude),
                             "frequencies": frequencies.double().tolist()})
    text = json.dumps({"transformers": transformers.__version__, "cases": made}, separators=(",", ":"))
    Path(__file__).with_name("rope.json").write_text(text.replace('},{"name', '},\n{"name') + "\n")


if __name__ == "__main__":
    main()
