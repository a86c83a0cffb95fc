"""A module for servers that says which version it is: `MODULE LOAD shelf.so 20810`.

Servers on PyPI come without modules, and CI has no C compiler. So the module is here as a compiled
file for x86-64, which needs no library. Other processors compile it from `SOURCE`.
"""

from __future__ import annotations

import base64
import platform
import subprocess
import zlib
from pathlib import Path

NAME = "shelf"
SOURCE = """
typedef int Find(const char *name, void *found);
typedef void Set(void *ctx, const char *name, int version, int api);
typedef int Number(void *text, long long *value);
__attribute__((visibility("default"))) int RedisModule_OnLoad(void *ctx, void **args, int count) {
    Find *find = *(Find **)ctx;
    Set *set = 0;
    Number *number = 0;
    long long version = 0;
    if (count != 1 || find("RedisModule_SetModuleAttribs", &set) ||
        find("RedisModule_StringToLongLong", &number) || number(args[0], &version))
        return 1;
    set(ctx, "shelf", (int)version, 1);
    return 0;
}
"""
# cc OPTIONS shelf.c -o shelf.so with gcc 12 on x86-64
OPTIONS = (
    "-shared -fPIC -nostdlib -Os -s -fvisibility=hidden -fno-asynchronous-unwind-tables "
    "-Wl,-z,noseparate-code -Wl,--build-id=none"
)
_COMPILED = (
    b"c-"
    b"pIX^>JfjWMqH=W(GS31doBi0ZLa0Ad6WrumVXg22QYARtDT)0uw6D05u1sj}3?e_#ylNc~p7>11b&E$3&t&4k#V?"
    b"v?PU%fp`G(ZV*r(3kmkY!j1{bhWV3$1rl^H`Ta#fi}2YGQYQq|bOfrQ8zvEynvz-Uo1apelN#@z=aZk9!r&NUcpx"
    b";`qxp@&|5HBQ>K>ggDiR<<0Yqq&u<rnw@jBY0^RGweXOCXna3I&Cw?sw4@&A?91Emi@Yz3fr3{V^*bk?KW8YHUmK"
    b"SV{L^#ITqp3<G&Au1X>8Nqr@{XkUbd!V#LH&D`}`G`SutYge!WY-0!mOxmJB_&0fNyR8m4+aY5rHADE<maV>Fhg-"
    b"hYEBx%C>RB!U=)mkQ7{Td!6+C7qhJ&a8SwSr|9lV~0qwWJ`o<fed{`f}0m|os@<pIDH<Xs3lY8Brovjo!TvC%V6Y"
    b"~@djr5H440H`mv{O=(42?<+HK9Tb40^>G#U({0iAfB4>3OAk8HvRi40<V*dBv5v5W1v@L9ZmWqJ%-"
    b"OC_g2!B#}WcH6uQ)C^0t`ET5R0narS<oS&PUnpZ*vcZ0&|+yDRhuweyQc*AHFq<%Q^H~<WYLd{@8iw_uW03Q#5^u"
    b";;Q;zbrJ$AlKYFj@ple;ygAB99FK0j!^o(cj0RUmGfB1m*iPq0$aG^uuUlD4Pk_I1L&=4?kO|+nE{A#zpv1$3vLW"
    b"^uxwg+@SUw;23yOC*XcYB(sr$I#j<uf$#$W7POyy"
)


def shelf_module(folder: Path) -> Path:
    """Return the module as a file in `folder`."""
    path = folder / "shelf.so"
    if platform.machine() == "x86_64":
        path.write_bytes(zlib.decompress(base64.b85decode(_COMPILED)))
    else:
        code = folder / "shelf.c"
        code.write_text(SOURCE)
        subprocess.run(["cc", *OPTIONS.split(), str(code), "-o", str(path)], check=True)
    path.chmod(0o755)  # servers refuse a module that they may not execute
    return path
