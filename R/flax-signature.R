# The formals of R functions inside a module, made visible to Python.
#
# An R function that reticulate has handed to Python shows the signature `(*args, **kwargs)` there, so that nobody could
# tell whether it takes `training`. The function itself is in the closure of the Python function, and can be asked: the
# core does so by what `.onLoad()` registers.

# From a Python function to a dict of its arguments, each with whether it has a default; NULL where it is not an R
# function, or shows its signature by itself (as the plain methods of a `%py_class%` do).
r_formals <- function(python_function) {
  f <- r_function_of(python_function)
  if (is.null(f)) {
    return(NULL)
  }
  arguments <- formals(f)
  has_default <- !vapply(arguments, rlang::is_missing, logical(1))
  reticulate::py_dict(as.list(names(arguments)), unname(as.list(has_default)))
}

r_function_of <- function(python_function) {
  module <- reticulate::py_get_attr(python_function, "__module__", silent = TRUE)
  if (!identical(reticulate::py_to_r(module), "rpytools.call")) {
    return(NULL)
  }
  cell <- reticulate::py_get_attr(python_function, "__closure__")[[0]]
  reticulate::py_to_r(reticulate::py_get_attr(cell, "cell_contents"))
}
