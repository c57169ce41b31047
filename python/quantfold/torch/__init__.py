# SPDX-License-Identifier: Apache-2.0
"""Quantization-aware training of PyTorch models, by the reference's functions: change the import, and
its flow runs on a machine without an NPU. Models that torch.ao quantized are saved by
save_quantized_model.

    import quantfold.torch as amct

    amct.create_quant_retrain_config("config.json", model, input_data)
    model = amct.create_quant_retrain_model("config.json", model, "record.txt", input_data)
    ...                                      # train
    model.eval(); model(input_data)          # writes the record
    amct.save_quant_retrain_model("config.json", model, "record.txt", "out/model", input_data)
"""

from .qdq import save_quantized_model
from .retrain import (
    create_quant_retrain_config,
    create_quant_retrain_model,
    restore_quant_retrain_model,
)
from .save import save_quant_retrain_model

__all__ = [
    "create_quant_retrain_config",
    "create_quant_retrain_model",
    "restore_quant_retrain_model",
    "save_quant_retrain_model",
    "save_quantized_model",
]
