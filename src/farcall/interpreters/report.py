# Runs in the interpreter that is probed, given to it with -c: prints one line of JSON about it. It must parse under
# every Python, old ones included, to say that they are too old: no annotations, no f-strings.
# pyright: basic, reportArgumentType=false
# ruff: noqa: UP036
import json
import os
import sys

MARK = "farcall-interpreter:"


def libc():
    try:
        return "gnu" if os.confstr("CS_GNU_LIBC_VERSION") else "musl"
    except (AttributeError, ValueError, OSError):
        return "musl" if sys.platform.startswith("linux") else "system"


def mapped_libraries():
    """Folders of the shared libraries this Python loads, with those of the usual extension modules."""
    for name in ("bz2", "ctypes", "hashlib", "lzma", "readline", "sqlite3", "ssl", "uuid", "zlib"):
        try:
            __import__(name)
        except Exception:
            pass
    folders = set()
    try:
        with open("/proc/self/maps") as maps:
            for line in maps:
                path = line.rstrip("\n").split(None, 5)[5:]
                if path and path[0].startswith("/") and ".so" in path[0]:
                    folders.add(os.path.dirname(path[0]))
    except OSError:
        pass
    return sorted(folders)


def editable_targets(folders):
    """Folders that editable installs lead to: by direct_url.json, and by import finders that hold a mapping."""
    targets = set()
    for finder in sys.meta_path:
        module = sys.modules.get(getattr(finder, "__module__", None) or type(finder).__module__)
        tables = [getattr(module, "MAPPING", None), getattr(module, "NAMESPACES", None)]
        tables.append(getattr(finder, "known_source_files", None))
        for table in tables:
            for value in table.values() if isinstance(table, dict) else ():
                for path in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(path, str) and os.path.isabs(path):
                        targets.add(path if os.path.isdir(path) else os.path.dirname(path))
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            try:
                with open(os.path.join(folder, name, "direct_url.json")) as file:
                    found = json.load(file)
            except (OSError, ValueError):
                continue
            url = found.get("url", "")
            if found.get("dir_info", {}).get("editable") and url.startswith("file://"):
                from urllib.parse import unquote, urlparse

                targets.add(unquote(urlparse(url).path))
    return sorted(targets)


def main():
    report = {
        "executable": sys.executable,
        "version": ".".join(str(part) for part in sys.version_info[:3]),
        "implementation": sys.implementation.name if hasattr(sys, "implementation") else "unknown",
    }
    if sys.version_info[:2] >= (3, 11):
        import site
        import sysconfig

        path = list(sys.path)
        if not sys.flags.safe_path:
            del path[0]  # the current folder, which -c puts there
        stdlib = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
        user_site = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
        shared = sysconfig.get_config_var("LIBDIR") if sysconfig.get_config_var("Py_ENABLE_SHARED") else None
        extra = mapped_libraries()
        report["prefixes"] = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
        report["path"] = [os.path.abspath(entry) for entry in path if entry]
        report["watch"] = user_site
        report["stdlib"] = stdlib
        report["libraries"] = extra + ([shared] if shared else [])
        report["editable"] = editable_targets(path)
        report["soabi"] = sysconfig.get_config_var("SOABI") or ""
        report["platform"] = sysconfig.get_platform()
        report["libc"] = libc()
    sys.stdout.write("\n" + MARK + json.dumps(report) + "\n")


main()
