# R values -> Python values, where reticulate's own rules would lose something.

# Collections of variables: arrays keep their dimensions, vectors become arrays of one dimension and not lists, and single
# numbers scalars. The core makes float32 out of doubles, and floating-point weights out of integers.
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

# R functions convert what they are called with: `inputs` arrives as an R list, where it is one, and not as Python's.
as_method <- function(method, name) {
  if (!is.function(method) || is_python_object(method) || inherits(method, "flax_module")) {
    return(method)
  }
  method <- reticulate::r_to_py(rlang::as_closure(method), convert = TRUE)
  reticulate::py_set_attr(method, "__name__", name)
  method
}

# The function that the user has defined under a name, as a method; NULL where there is none. Only the session's own counts:
# a file may name it.
r_method_of_name <- function(name) {
  f <- get0(name, envir = globalenv(), mode = "function", inherits = FALSE)
  if (!is.null(f)) as_method(f, name)
}

# The name under which `r_method_of_name()` finds a method, NULL where another function has it by now.
r_name_of_method <- function(method) {
  name <- reticulate::py_to_r(reticulate::py_get_attr(method, "__name__"))
  f <- get0(name, envir = globalenv(), mode = "function", inherits = FALSE)
  if (!is.null(f) && identical(rlang::as_closure(f), r_function_of(method))) name
}

# Arguments of the layer: whole doubles where Keras asks for integers, shapes as tuples.
as_layer_arguments <- function(dots) {
  if (is.numeric(dots$seed)) {
    # R's integers end at 2^31, seeds at 2^32.
    dots$seed <- reticulate::py_eval(
      format(dots$seed, scientific = FALSE, digits = 15),
      convert = FALSE
    )
  }
  if (!is.null(dots$input_shape)) {
    dots$input_shape <- shape(dots$input_shape)
  }
  dots
}

# A JAX array as an R array. R has no half precision, in which float32 holds every value.
as_r_array <- function(x) {
  if (is_python_object(x) && grepl("float16", reticulate::py_str(x$dtype), fixed = TRUE)) {
    x <- x$astype("float32")
  }
  if (is_python_object(x)) as.array(x) else x
}
