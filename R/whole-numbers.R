# Whole numbers in calls from R to Flax and JAX.
#
# Numbers in R are doubles by default, and Python gets floats. Flax and JAX need integers for sizes,
# shapes, axes and seeds. All calls from R go through the R function that reticulate creates for a
# Python function. The methods below create one that converts whole numbers to integers, and vectors
# of them to tuples, in the arguments that must be integers; the core knows which these are.

# `PjitFunction` is what `jax.jit()` returns.
#' @rawNamespace
#' S3method(reticulate::py_to_r_wrapper, python.builtin.function, accept_whole_numbers)
#' S3method(reticulate::py_to_r_wrapper, python.builtin.method, accept_whole_numbers)
#' S3method(reticulate::py_to_r_wrapper, python.builtin.type, accept_whole_numbers)
#' S3method(reticulate::py_to_r_wrapper, jaxlib._jax.PjitFunction, accept_whole_numbers)
#' S3method(reticulate::py_to_r_wrapper, functools.partial, accept_whole_numbers)
#' @noRd
accept_whole_numbers <- function(f) {
  force(f)
  if (!is_flax_function(f)) {
    return(f)
  }
  run <- function(call, frame) {
    call[[1]] <- rlang::list2
    do.call(f, with_whole_numbers(f, eval(call, frame)), quote = TRUE)
  }
  # The arguments may have any names, so the body does not refer to `run` by name.
  body <- as.call(list(run, quote(sys.call()), quote(parent.frame())))
  rlang::new_function(shown_arguments(f), body, baseenv())
}

# The arguments of a function, for completion and `args()`. A class of NNX is called through its
# metaclass, which takes anything, so these are the arguments of its `__init__`. `...` accepts all
# others, which are Python's to refuse.
shown_arguments <- function(f) {
  if (!inherits(f, "flax.nnx.pytreelib.PytreeMeta")) {
    return(formals(f))
  }
  arguments <- formals(reticulate::py_get_attr(f, "__init__"))[-1]
  c(arguments, if (!"..." %in% names(arguments)) list(... = rlang::missing_arg()))
}

# Functions and classes of Flax and JAX, and module classes of users.
is_flax_function <- function(f) {
  module <- reticulate::py_to_r(reticulate::py_get_attr(f, "__module__", silent = TRUE))
  rlang::is_string(module) && grepl("^(flax|jax|jaxlib|functools)(\\.|$)", module) ||
    inherits(f, c("flax.nnx.pytreelib.PytreeMeta", "functools.partial")) ||
    inherits(f, "python.builtin.type") && reticulate::py_has_attr(f, "init_with_output")
}

# Converts the arguments of a call that must be integers.
with_whole_numbers <- function(f, arguments) {
  is_number <- vapply(arguments, has_whole_numbers, NA)
  if (!any(is_number)) {
    return(arguments)
  }
  is_named <- nzchar(names(arguments) %||% rep("", length(arguments)))
  functions <- lapply(arguments, \(value) if (is.function(value)) value)
  order <- c(which(!is_named), which(is_named))
  is_integer <- core_function("integer_arguments")(
    f,
    unname(functions[!is_named]),
    as_named_dict(functions[is_named])
  )
  convert <- order[unlist(is_integer)]
  arguments[convert] <- lapply(arguments[convert], as_python_integers)
  arguments
}

# Whether a value contains numbers that Python would not get as integers or tuples of them.
has_whole_numbers <- function(value) {
  if (is.object(value) || !is.null(dim(value))) {
    FALSE
  } else if (is.list(value)) {
    is_list_of_numbers(value) || any(vapply(value, has_whole_numbers, NA))
  } else {
    is.double(value) && length(value) > 0 && all(is.finite(value) & value == trunc(value)) ||
      is.integer(value) && length(value) > 1 && !anyNA(value)
  }
}

# Python would get `list(2, 2)` as a list, and Flax needs a tuple.
is_list_of_numbers <- function(value) {
  is_number <- vapply(value, rlang::is_scalar_integerish, NA, finite = TRUE)
  is.null(names(value)) && length(value) > 0 && all(is_number)
}

as_python_integers <- function(value) {
  if (!has_whole_numbers(value)) {
    value
  } else if (is.list(value) && is_list_of_numbers(value)) {
    do.call(reticulate::tuple, lapply(value, as_python_integer))
  } else if (is.list(value)) {
    lapply(value, as_python_integers)
  } else if (length(value) > 1) {
    do.call(reticulate::tuple, lapply(unname(value), as_python_integers))
  } else {
    as_python_integer(value)
  }
}

# As Python code: R's integers end at 2^31.
as_python_integer <- function(value) {
  reticulate::py_eval(format(value, scientific = FALSE, digits = 15), convert = FALSE)
}
