# Methods of R's generics for tensors inside a module.
#
# Inside a module, every tensor is a JAX tracer: it has a shape and a dtype, but no values. Without
# methods, many of R's generics silently return a wrong result (`mean(x)` is NA, `dim(x)` is NULL,
# `rev(x)` is empty). If keras3 has the operation, the method calls it. If R's meaning is
# impossible, the method stops and names the replacement.

# R sets this variable when it calls a group method.
utils::globalVariables(".Generic")

#' @rawNamespace S3method("Summary", "jax._src.core.Tracer")
#' @noRd
Summary.jax._src.core.Tracer <- function(..., na.rm = FALSE) {
  operations <- list(
    sum = list(keras3::op_sum, keras3::op_add),
    prod = list(keras3::op_prod, keras3::op_multiply),
    max = list(keras3::op_max, keras3::op_maximum),
    min = list(keras3::op_min, keras3::op_minimum),
    all = list(keras3::op_all, keras3::op_logical_and),
    any = list(keras3::op_any, keras3::op_logical_or)
  )
  operation <- operations[[.Generic]]
  # R would add up the value of an argument such as `axis`.
  named <- setdiff(names(list(...)), "")
  if (is.null(operation) || na.rm || length(named) > 0) {
    instead <- if (na.rm) {
      "`op_where()` to replace NaN first"
    } else if (is.null(operation)) {
      "`op_min()` and `op_max()`"
    } else {
      sprintf("`op_%s(x, axis = )`", .Generic)
    }
    argument <- if (na.rm) "na.rm = TRUE" else if (length(named) > 0) paste(named[[1]], "=")
    stop_on_tracer(paste0(.Generic, if (!is.null(argument)) sprintf("(%s)", argument)), instead)
  }
  Reduce(operation[[2]], lapply(list(...), operation[[1]]))
}

#' @rawNamespace S3method("Math", "jax._src.core.Tracer")
#' @noRd
Math.jax._src.core.Tracer <- function(x, ...) {
  names <- c(
    ceiling = "ceil",
    acos = "arccos",
    asin = "arcsin",
    atan = "arctan",
    acosh = "arccosh",
    asinh = "arcsinh",
    atanh = "arctanh"
  )
  same <- c("abs", "sign", "sqrt", "floor", "round", "cos", "sin", "tan", "cosh", "sinh", "tanh")
  same <- c(same, "exp", "log", "expm1", "log1p", "log2", "log10")
  name <- if (.Generic %in% same) .Generic else names[.Generic]
  if (is.na(name) || ...length()) {
    operation <- paste0("op_", if (is.na(name)) .Generic else name)
    exists <- operation %in% getNamespaceExports("keras3")
    stop_on_tracer(.Generic, if (exists) sprintf("`%s()`", operation) else "operations of keras3")
  }
  getExportedValue("keras3", paste0("op_", name))(x)
}

#' @rawNamespace S3method("mean", "jax._src.core.Tracer")
#' @noRd
mean.jax._src.core.Tracer <- function(x, ...) {
  if (...length()) {
    stop_on_tracer("mean", "`op_mean(x, axis = )`")
  }
  keras3::op_mean(x)
}

# Integers, or a list if a size is symbolic. Both can be passed on as a shape.
#' @rawNamespace S3method("dim", "jax._src.core.Tracer")
#' @noRd
dim.jax._src.core.Tracer <- function(x) {
  shape <- as.list(x$shape)
  if (all(vapply(shape, is.numeric, NA))) as.integer(unlist(shape)) else shape
}

#' @rawNamespace S3method("is.na", "jax._src.core.Tracer")
#' @noRd
is.na.jax._src.core.Tracer <- function(x) keras3::op_isnan(x)

#' @rawNamespace S3method("rev", "jax._src.core.Tracer")
#' @noRd
rev.jax._src.core.Tracer <- function(x) {
  if (x$ndim != 1) {
    stop_on_tracer("rev", "`op_flip(x, axis = )`")
  }
  keras3::op_flip(x)
}

#' @rawNamespace S3method("as.logical", "jax._src.core.Tracer")
#' @noRd
as.logical.jax._src.core.Tracer <- function(x, ...) {
  stop_on_tracer(
    "as.logical",
    "`op_where()` to choose by element, or `op_cast(x, \"bool\")` to convert the dtype"
  )
}

#' @rawNamespace S3method("as.double", "jax._src.core.Tracer")
#' @noRd
as.double.jax._src.core.Tracer <- function(x, ...) {
  stop_on_tracer("as.numeric", "`op_cast(x, \"float32\")`")
}

#' @rawNamespace S3method("as.integer", "jax._src.core.Tracer")
#' @noRd
as.integer.jax._src.core.Tracer <- function(x, ...) {
  stop_on_tracer("as.integer", "`op_cast(x, \"int32\")`")
}

#' @rawNamespace S3method("is.numeric", "jax._src.core.Tracer")
#' @noRd
is.numeric.jax._src.core.Tracer <- function(x) {
  !reticulate::py_str(x$dtype) %in% c("bool", "key<fry>")
}

# The number of elements, as for an R array. Python's length is the size of the first axis.
#' @rawNamespace S3method("length", "jax._src.core.Tracer")
#' @noRd
length.jax._src.core.Tracer <- function(x) {
  if (!is_in_module()) {
    return(NextMethod())
  }
  sizes <- dim(x)
  if (is.list(sizes)) {
    stop_on_tracer("length", "`op_size()`, because a size is unknown, or `dim()` for each size")
  }
  as.integer(prod(sizes))
}

# Python's operators are bitwise for integers.
#' @rawNamespace S3method("&", "jax._src.core.Tracer")
#' @noRd
`&.jax._src.core.Tracer` <- function(e1, e2) keras3::op_logical_and(e1, e2)

#' @rawNamespace S3method("|", "jax._src.core.Tracer")
#' @noRd
`|.jax._src.core.Tracer` <- function(e1, e2) keras3::op_logical_or(e1, e2)

#' @rawNamespace S3method("!", "jax._src.core.Tracer")
#' @noRd
`!.jax._src.core.Tracer` <- function(x) keras3::op_logical_not(x)

#' @rawNamespace S3method("t", "jax._src.core.Tracer")
#' @noRd
t.jax._src.core.Tracer <- function(x) {
  if (x$ndim != 2) {
    stop_on_tracer("t", "`op_transpose(x, axes = )`")
  }
  keras3::op_transpose(x)
}

#' @rawNamespace S3method("aperm", "jax._src.core.Tracer")
#' @noRd
aperm.jax._src.core.Tracer <- function(a, perm = NULL, ...) {
  keras3::op_transpose(a, axes = if (!is.null(perm)) as.integer(perm))
}

#' @rawNamespace S3method("rep", "jax._src.core.Tracer")
#' @noRd
rep.jax._src.core.Tracer <- function(x, ...) stop_on_tracer("rep", "`op_repeat()` or `op_tile()`")

#' @rawNamespace S3method("diff", "jax._src.core.Tracer")
#' @noRd
diff.jax._src.core.Tracer <- function(x, ...) stop_on_tracer("diff", "`op_diff(x, axis = )`")

#' @rawNamespace S3method("scale", "jax._src.core.Tracer")
#' @noRd
scale.jax._src.core.Tracer <- function(x, ...) {
  stop_on_tracer("scale", "`op_mean()` and `op_std()` with `axis = 1`")
}

#' @rawNamespace S3method("cbind", "jax._src.core.Tracer")
#' @noRd
cbind.jax._src.core.Tracer <- function(...) {
  stop_on_tracer("cbind", "`op_concatenate(list(...), axis = -1)`")
}

#' @rawNamespace S3method("rbind", "jax._src.core.Tracer")
#' @noRd
rbind.jax._src.core.Tracer <- function(...) {
  stop_on_tracer("rbind", "`op_concatenate(list(...), axis = 1)`")
}

#' @rawNamespace S3method("sort", "jax._src.core.Tracer")
#' @noRd
sort.jax._src.core.Tracer <- function(x, decreasing = FALSE, ...) {
  stop_on_tracer("sort", "`op_sort(x, axis = )`")
}

#' @importFrom stats median
#' @rawNamespace S3method("median", "jax._src.core.Tracer")
#' @noRd
median.jax._src.core.Tracer <- function(x, na.rm = FALSE, ...) {
  stop_on_tracer("median", "`op_quantile(x, 0.5, axis = )`")
}

#' @importFrom stats quantile
#' @rawNamespace S3method("quantile", "jax._src.core.Tracer")
#' @noRd
quantile.jax._src.core.Tracer <- function(x, ...) {
  stop_on_tracer("quantile", "`op_quantile(x, probs, axis = )`")
}

#' @rawNamespace S3method("unique", "jax._src.core.Tracer")
#' @noRd
unique.jax._src.core.Tracer <- function(x, incomparables = FALSE, ...) {
  stop_on_tracer("unique", "`op_where()`: the number of unique values is unknown")
}

#' @rawNamespace S3method("solve", "jax._src.core.Tracer")
#' @noRd
solve.jax._src.core.Tracer <- function(a, b, ...) {
  stop_on_tracer("solve", "`op_solve(a, b)` or `op_inv(a)`")
}

#' @rawNamespace S3method("as.list", "jax._src.core.Tracer")
#' @noRd
as.list.jax._src.core.Tracer <- function(x, ...) {
  stop_on_tracer("as.list", "`op_unstack(x, axis = )`, or operations on the whole tensor")
}

#' @rawNamespace S3method("as.vector", "jax._src.core.Tracer")
#' @noRd
as.vector.jax._src.core.Tracer <- function(x, mode = "any") {
  stop_on_tracer("as.vector", "`op_reshape(x, -1)`")
}

#' @rawNamespace S3method("as.matrix", "jax._src.core.Tracer")
#' @noRd
as.matrix.jax._src.core.Tracer <- function(x, ...) {
  stop_on_tracer("as.matrix", "`op_reshape(x, c(...))`")
}

#' @rawNamespace S3method("length<-", "jax._src.core.Tracer")
#' @noRd
`length<-.jax._src.core.Tracer` <- function(x, value) {
  stop_on_tracer("length<-", "`op_subset(x, ...)`")
}

#' @rawNamespace S3method("dim<-", "jax._src.core.Tracer")
#' @noRd
`dim<-.jax._src.core.Tracer` <- function(x, value) {
  stop_on_tracer("dim<-", "`op_reshape(x, c(...))`")
}

#' @rawNamespace S3method("is.nan", "jax._src.core.Tracer")
#' @noRd
is.nan.jax._src.core.Tracer <- function(x) keras3::op_isnan(x)

#' @rawNamespace S3method("is.finite", "jax._src.core.Tracer")
#' @noRd
is.finite.jax._src.core.Tracer <- function(x) keras3::op_isfinite(x)

#' @rawNamespace S3method("is.infinite", "jax._src.core.Tracer")
#' @noRd
is.infinite.jax._src.core.Tracer <- function(x) keras3::op_isinf(x)

# A list may hold tensors.
#' @rawNamespace S3method("c", "jax._src.core.Tracer")
#' @noRd
c.jax._src.core.Tracer <- function(...) {
  is_list <- vapply(list(...), \(value) is.list(value) && !is.object(value), NA)
  if (any(is_list)) {
    return(do.call(c, lapply(list(...), \(value) if (is_tracer(value)) list(value) else value)))
  }
  stop_on_tracer("c", replacements[["c"]])
}

# reticulate's `[` counts from 0, which R code inside a module would not expect. Outside a module,
# it is unchanged.
#' @rawNamespace S3method("[", "jax._src.core.Tracer")
#' @noRd
`[.jax._src.core.Tracer` <- function(x, ...) {
  if (is_in_module()) {
    stop_on_tracer(
      "[",
      "`op_subset(x, ...)`, which counts from 1 as R does; Python's indices count from 0"
    )
  }
  NextMethod()
}

# R code uses `[[` with a name to get attributes of Python objects.
#' @rawNamespace S3method("[[", "jax._src.core.Tracer")
#' @noRd
`[[.jax._src.core.Tracer` <- function(x, ...) {
  if (is_in_module() && is.numeric(..1)) {
    stop_on_tracer(
      "[[",
      "`op_subset(x, ...)`, which counts from 1 as R does, or pass a list of inputs"
    )
  }
  NextMethod()
}

#' @rawNamespace S3method("[<-", "jax._src.core.Tracer")
#' @noRd
`[<-.jax._src.core.Tracer` <- function(x, ..., value) {
  if (is_in_module()) {
    stop_on_tracer("[<-", "`op_subset(x, ...) <- value`, which counts from 1 as R does")
  }
  NextMethod()
}

is_in_module <- function() core_function("module_is_running")()

# `instead` follows "Use". It is not a template. If a function of R calls the generic, the message
# names that function, which the user has called.
stop_on_tracer <- function(generic, instead, call = caller_env(2)) {
  caller <- rlang::call_name(rlang::frame_call(call) %||% quote(none())) %||% ""
  if (caller %in% names(replacements) && is_of_r(caller, rlang::frame_fn(call))) {
    generic <- caller
    instead <- advised(caller)
  }
  abort_kerasflax(
    c(
      "{.code {generic}} is not available for a tensor inside a module.",
      i = "Use {instead}."
    ),
    cause = "tracer",
    call = call
  )
}
