# Converts R values to Python values where reticulate's own rules would lose information.

# Collections of variables: arrays keep their dimensions, vectors become one-dimensional arrays
# instead of lists, and single numbers become scalars. The core converts doubles to float32, and
# integers to floating-point weights.
as_variables <- function(variables) {
  if (is.null(variables) || is_python_object(variables)) {
    variables
  } else if (is.list(variables) && !is.object(variables)) {
    lapply(variables, as_variables)
  } else if (
    is.atomic(variables) &&
      !is.character(variables) &&
      is.null(dim(variables)) &&
      length(variables) != 1
  ) {
    array(variables, dim = length(variables))
  } else {
    variables
  }
}

# Python calls the R function with converted arguments: `inputs` arrives as an R list, not as a
# Python list.
as_method <- function(method, name) {
  if (!is.function(method) || is_python_object(method) || inherits(method, "flax_module")) {
    return(method)
  }
  method <- reticulate::r_to_py(masked(rlang::as_closure(method)), convert = TRUE)
  reticulate::py_set_attr(method, "__name__", name)
  method
}

# The function with this name in the global environment, as a method. NULL if there is none. A file
# may contain the name, so other environments are not searched.
r_method_of_name <- function(name) {
  f <- get0(name, envir = globalenv(), mode = "function", inherits = FALSE)
  if (!is.null(f)) as_method(f, name)
}

# The name under which `r_method_of_name()` finds a method. NULL if another function has that name
# by now.
r_name_of_method <- function(method) {
  name <- reticulate::py_to_r(reticulate::py_get_attr(method, "__name__"))
  f <- get0(name, envir = globalenv(), mode = "function", inherits = FALSE)
  if (!is.null(f) && identical(rlang::as_closure(f), unmasked(r_function_of(method)))) name
}

# Arguments of the layer: Keras needs integers for whole doubles, and tuples for shapes.
as_layer_arguments <- function(dots) {
  if (is.numeric(dots$seed)) {
    dots$seed <- as_python_integer(dots$seed)
  }
  if (!is.null(dots$input_shape)) {
    dots$input_shape <- shape(dots$input_shape)
  }
  dots
}

# A JAX array as an R array. R has no half precision; float32 holds every half-precision value.
as_r_array <- function(x) {
  if (is_python_object(x) && grepl("float16", reticulate::py_str(x$dtype), fixed = TRUE)) {
    x <- x$astype("float32")
  }
  if (is_python_object(x)) as.array(x) else x
}

# Path patterns. A list stays a list in Python, even if it has one element.
as_patterns <- function(path) if (!is.null(path)) as.list(unname(path))
