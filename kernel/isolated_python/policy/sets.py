"""Named sets of modules: what a profile means by @stdlib-safe, @data-science and their kin."""

from __future__ import annotations

# Modules of the standard library that compute, keep or show things. Those that are left out start programs, open
# sockets, load machine code, drive the interpreter or a terminal. What they would do is a matter of the layers.
STDLIB_SAFE = (
    *("abc", "argparse", "array", "ast", "asyncio", "base64", "bisect", "builtins", "calendar", "cmath", "codecs"),
    *("collections", "colorsys", "concurrent", "configparser", "contextlib", "contextvars", "copy", "copyreg", "csv"),
    *("dataclasses", "datetime", "decimal", "difflib", "dis", "doctest", "email", "enum", "errno", "filecmp"),
    *("fileinput", "fnmatch", "fractions", "functools", "gc", "getpass", "gettext", "glob", "graphlib", "gzip"),
    *("hashlib", "heapq", "hmac", "html", "inspect", "io", "ipaddress", "itertools", "json", "keyword", "linecache"),
    *("locale", "logging", "lzma", "bz2", "math", "mimetypes", "numbers", "operator", "os", "pathlib", "pickle"),
    *("pickletools", "platform", "posixpath", "pprint", "profile", "cProfile", "pstats", "queue", "quopri", "random"),
    *("re", "reprlib", "sched", "secrets", "shelve", "shlex", "shutil", "sqlite3", "stat", "statistics", "string"),
    *("stringprep", "struct", "sys", "sysconfig", "tarfile", "tempfile", "textwrap", "threading", "time", "timeit"),
    *("token", "tokenize", "tomllib", "trace", "traceback", "tracemalloc", "turtle", "types", "typing", "unicodedata"),
    *("unittest", "urllib", "uuid", "warnings", "wave", "weakref", "xml", "zipfile", "zlib", "zoneinfo"),
    *("annotationlib", "compression", "dbm", "plistlib", "netrc", "symtable", "optparse", "imghdr"),
)

PLOTTING = ("matplotlib", "seaborn", "plotly", "altair", "bokeh", "pillow", "graphviz", "pydot", "ipympl", "plotnine")
LEARNING = (
    "scikit-learn",
    "statsmodels",
    "xgboost",
    "lightgbm",
    "catboost",
    "joblib",
    "imbalanced-learn",
    "umap-learn",
)
NOTEBOOK = ("ipython", "ipywidgets", "matplotlib-inline", "traitlets", "tqdm", "itables", "rich")
DATA_SCIENCE = (
    *("numpy", "pandas", "scipy", "sympy", "mpmath", "networkx", "xarray", "polars", "pyarrow", "openpyxl", "xlrd"),
    *("numexpr", "bottleneck", "patsy", "python-dateutil", "pytz", "tabulate", "scikit-image", "shapely", "geopandas"),
    *PLOTTING,
    *LEARNING,
)

# Of a set only what is installed counts; a name that a profile writes itself must be there. None: the whole of it,
# as the interpreter names it.
SETS: dict[str, tuple[str, ...] | None] = {
    "@stdlib": None,
    "@stdlib-safe": STDLIB_SAFE,
    "@notebook": NOTEBOOK,
    "@data-science": DATA_SCIENCE,
    "@plotting": PLOTTING,
    "@learning": LEARNING,
}
