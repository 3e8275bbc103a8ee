# Makes the formals of R functions inside a module visible to Python.
#
# reticulate gives an R function the Python signature `(*args, **kwargs)`, so Python cannot tell
# whether the function takes `training`. The closure of the Python function holds the R function.
# The core calls `r_formals()`, which `register_r()` registers, to read its arguments.

# A dict from the names of the arguments to whether they have a default. NULL if the function is not
# an R function, or if Python can read its signature (plain methods of a `%py_class%`).
r_formals <- function(python_function) {
  f <- r_function_of(python_function)
  if (is.null(f)) {
    return(NULL)
  }
  arguments <- formals(f)
  has_default <- !vapply(arguments, rlang::is_missing, logical(1))
  reticulate::py_dict(as.list(names(arguments)), unname(as.list(has_default)))
}

# reticulate does not document where it keeps the R function. This was seen with reticulate 1.47.0
# (tests/versions.csv). `reticulate::py_func()` would give an R function its own signature in Python
# (https://github.com/rstudio/reticulate/issues/141), but users do not call it.
r_function_of <- function(python_function) {
  module <- reticulate::py_get_attr(python_function, "__module__", silent = TRUE)
  if (!identical(reticulate::py_to_r(module), "rpytools.call")) {
    return(NULL)
  }
  cell <- reticulate::py_get_attr(python_function, "__closure__")[[0]]
  reticulate::py_to_r(reticulate::py_get_attr(cell, "cell_contents"))
}
