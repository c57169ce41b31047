#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""embed.py page.css page.js OUT.c: the two files as C strings, with their hashes in the form that a
Content-Security-Policy takes. Run by the build."""

import base64
import hashlib
import sys
from pathlib import Path


def main(css: Path, js: Path, out: Path) -> None:
    """Writes the C file."""
    lines = ["/* Made by embed.py. */", '#include "report/summary.h"', ""]
    for name, path in (("css", css), ("js", js)):
        data = path.read_bytes()
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        lines.append(f"const char qf_page_{name}[] = {{")
        for at in range(0, len(data), 24):
            lines.append("    " + ", ".join(str(b) for b in data[at : at + 24]) + ",")
        lines += ["    0};", f'const char qf_page_{name}_hash[] = "sha256-{digest}";', ""]
    out.write_text("\n".join(lines))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
