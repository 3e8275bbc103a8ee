"""Everything that R calls. `R/core.R` is the only R file that uses this module.

R also uses the public attributes of the objects that it gets from here (layers, errors).
"""

from . import (
    FlaxLayer,
    LazyModule,
    distribute,
    export_model,
    import_model,
    parameters,
    read_variables,
    save_model,
    write_variables,
)
from ._host import register
from ._models import (
    check_savable,
    fitted_variables,
    numpy_variables,
    set_frozen,
    set_variables,
    variables,
)
from .adapters._context import module_is_running
from .adapters._protocol import module_class
from .adapters._whole_numbers import integer_arguments

__all__ = [
    "FlaxLayer",
    "LazyModule",
    "check_savable",
    "distribute",
    "export_model",
    "fitted_variables",
    "import_model",
    "integer_arguments",
    "module_class",
    "module_is_running",
    "numpy_variables",
    "parameters",
    "read_variables",
    "register",
    "save_model",
    "set_frozen",
    "set_variables",
    "variables",
    "write_variables",
]
