# SPDX-License-Identifier: Apache-2.0
"""A whole program on the Python package: example.py DIGITS_FOLDER SAVE_PATH"""

import sys

import quantfold


def main(folder: str, save_path: str) -> None:
    """Exports the digits network and shows what a failure carries."""
    report = quantfold.export(
        f"{folder}/model.onnx",
        save_path,
        config=f"{folder}/config.json",
        record=f"{folder}/record.txt",
    )
    print(f"{len(report.layers)} layers quantized, {len(report.skipped)} left in float")
    for file in report.outputs:
        print(f"{file.bytes:>8}  {file.path}")
    try:
        quantfold.export(f"{folder}/model.onnx", save_path, record=f"{folder}/config.json")
    except quantfold.InputError as error:
        print(f"refused, as it should be: {error.file}, line {error.line}")
    else:
        sys.exit("a config was taken for a record")


if __name__ == "__main__":
    main(*sys.argv[1:])
