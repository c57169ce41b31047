# SPDX-License-Identifier: Apache-2.0
"""The binding's structs and functions against the header, by the C compiler."""

from __future__ import annotations

import ctypes
import re
import subprocess

import pytest
from quantfold import _library as c

STRUCTS = {
    "qf_error": c.Error,
    "qf_diagnostic": c.DiagnosticStruct,
    "qf_model_info": c.ModelInfoStruct,
    "qf_layer_candidate": c.LayerCandidateStruct,
    "qf_dynamic_axis": c.DynamicAxis,
    "qf_io_spec": c.IoSpec,
    "qf_export_options": c.ExportOptions,
    "qf_layer_info": c.LayerInfoStruct,
    "qf_skipped_layer": c.SkippedLayerStruct,
    "qf_output_file": c.OutputFileStruct,
    "qf_report_totals": c.ReportTotals,
    "qf_checkpoint_options": c.CheckpointOptions,
    "qf_checkpoint_tensor": c.CheckpointTensorStruct,
    "qf_verify_options": c.VerifyOptions,
    "qf_verify_result": c.VerifyResult,
}
# what Python has a way of its own for
NOT_BOUND = {
    "qf_model_has_file",
    "qf_status_name",
    "qf_record_parse",
    "qf_record_count",
    "qf_record_key",
    "qf_dynamic_axes_parse",
    "qf_save_quant_retrain_model",
    "qf_handle_sigbus",
}


@pytest.fixture(scope="module")
def layout(repo, tmp_path_factory) -> dict[str, int]:
    """sizeof each struct, and offsetof and sizeof each field, as the compiler sees them."""
    lines = []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        for field in struct._fields_:
            at = f"{name}.{field[0]}"
            lines.append(
                f'printf("{at} %zu\\n{at}# %zu\\n", offsetof({name}, {field[0]}), '
                f"sizeof((({name} *)0)->{field[0]}));"
            )
    folder = tmp_path_factory.mktemp("abi")
    source = folder / "abi.c"
    source.write_text(
        "#include <quantfold/quantfold.h>\n#include <stdio.h>\nint main(void)\n{\n"
        + "\n".join(lines)
        + "\nreturn 0;\n}\n"
    )
    subprocess.run(["cc", f"-I{repo}/include", source, "-o", folder / "abi"], check=True)
    out = subprocess.run([folder / "abi"], check=True, capture_output=True, text=True).stdout
    return {k: int(v) for k, v in (line.split() for line in out.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_struct(layout, name):
    struct = STRUCTS[name]
    assert ctypes.sizeof(struct) == layout[name]
    for field in struct._fields_:
        mirrored = getattr(struct, field[0])
        assert mirrored.offset == layout[f"{name}.{field[0]}"], field[0]
        assert mirrored.size == layout[f"{name}.{field[0]}#"], field[0]


def test_every_field_is_mirrored(repo):
    """A field that the header has and the binding lacks would shift all behind it unnoticed only if
    it were last."""
    header = (repo / "include" / "quantfold" / "quantfold.h").read_text()
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.S)
    for name, struct in STRUCTS.items():
        body = re.search(rf"typedef struct {name} \{{(.*?)\}} {name};", header, re.S)
        assert body, name
        declared = [
            re.sub(r"\[.*", "", part).split()[-1].lstrip("*")
            for statement in body.group(1).split(";")
            for part in statement.split(",")
            if part.strip()
        ]
        assert [f[0] for f in struct._fields_] == declared, name


def test_every_function_is_bound(repo):
    header = (repo / "include" / "quantfold" / "quantfold.h").read_text()
    declared = set(re.findall(r"QF_API [^;]*?\b(qf_\w+)\(", header))
    assert declared == set(c.FUNCTIONS) | NOT_BOUND
    assert not set(c.FUNCTIONS) & NOT_BOUND
