# R functions that are not generic, on tensors inside a module.
#
# An R function such as `rowSums()` cannot have a method for tensors. The functions of a module that
# is defined in R therefore see versions that handle tensors, in an environment between the function
# and its own. Other R code, such as the methods of a `%py_class%`, sees R's functions; their errors
# get the same advice (`advice_on_tensors()`).

# What to use for a tensor, by function: a function, if it gives the same result, or else text that
# follows "Use".
replacements <- list(
  rowSums = function(x) reduce_axes(keras3::op_sum, x, keep = 1),
  rowMeans = function(x) reduce_axes(keras3::op_mean, x, keep = 1),
  colSums = function(x) keras3::op_sum(x, axis = 1L),
  colMeans = function(x) keras3::op_mean(x, axis = 1L),
  pmax = function(...) Reduce(keras3::op_maximum, list(...)),
  pmin = function(...) Reduce(keras3::op_minimum, list(...)),
  "%*%" = function(x, y) keras3::op_matmul(as_tensor(x), as_tensor(y)),
  is.array = function(x) TRUE,
  is.matrix = function(x) x$ndim == 2,
  plogis = function(q) keras3::op_sigmoid(q),
  crossprod = "`op_matmul(op_transpose(x), y)`",
  tcrossprod = "`op_matmul(x, op_transpose(y))`",
  outer = "`op_outer()`, or `op_expand_dims()` and an operator",
  "%o%" = "`op_outer()`, or `op_expand_dims()` and an operator",
  apply = "an operation with `axis = `, such as `op_sum(x, axis = 2)`, or `op_vectorized_map()`",
  sapply = "operations on the whole tensor, or `op_vectorized_map()`",
  lapply = "operations on the whole tensor, or `op_unstack()`",
  vapply = "operations on the whole tensor, or `op_vectorized_map()`",
  Map = "operations on the whole tensor, or `op_vectorized_map()`",
  mapply = "operations on the whole tensor, or `op_vectorized_map()`",
  sweep = "an operator: a vector is combined with the last axis",
  matrix = "`op_reshape(x, c(...))`",
  array = "`op_reshape(x, c(...))`",
  c = "`op_concatenate(list(...), axis = -1)`, or `list()`",
  append = "`op_concatenate(list(...), axis = -1)`, or `list()`",
  ifelse = "`op_where()` to choose by element",
  which = "`op_nonzero()`, or `op_where()` to choose by element",
  which.max = "`op_argmax(x, axis = )`",
  which.min = "`op_argmin(x, axis = )`",
  var = "`op_var(x, axis = )`, which divides by n and not by n - 1",
  sd = "`op_std(x, axis = )`, which divides by n and not by n - 1",
  cor = "`op_corrcoef()`",
  order = "`op_argsort(x, axis = )`",
  rank = "`op_argsort(x, axis = )`",
  tabulate = "`op_bincount()`",
  table = "`op_bincount()`",
  match = "`==` and `op_any()`",
  "%in%" = "`==` and `op_any()`",
  diag = "`op_diagonal(x)` or `op_diag(x)`",
  det = "`op_det(x)`",
  norm = "`op_norm(x)`",
  svd = "`op_svd(x)`",
  chol = "`op_cholesky(x)`",
  qr = "`op_qr(x)`",
  eigen = "`op_eigh(x)`",
  kronecker = "`op_einsum()`",
  fft = "`op_fft()`",
  as.array = "the tensor itself: it has no values yet",
  cat = "`print(x)`: a tensor has a shape and a dtype, but no values yet",
  drop = "`op_squeeze(x, axis = )`",
  replace = "`op_where()`",
  split = "`op_split(x, n, axis = )`",
  cut = "`op_digitize(x, bins)`",
  findInterval = "`op_digitize(x, bins)`",
  max.col = "`op_argmax(x, axis = -1)`",
  weighted.mean = "`op_average(x, weights = , axis = )`",
  pnorm = "`op_erf()`: `0.5 * (1 + op_erf(x / sqrt(2)))`",
  dnorm = "`op_exp()`",
  atan2 = "`op_arctan2(y, x)`",
  Reduce = "operations on the whole tensor, or `op_unstack()`",
  Filter = "`op_where()` to choose by element",
  tail = "`op_subset(x, ...)`",
  head = "`op_subset(x, ...)`",
  "for" = "operations on the whole tensor, or loop over `op_unstack(x, axis = )`",
  switch = "`op_switch()`"
)

# Those that R evaluates in a way of its own.
special_forms <- c("for", "switch")

# The operations of the functions above, for advice.
operations_like <- list(
  rowSums = "`op_sum(x, axis = -1)`",
  rowMeans = "`op_mean(x, axis = -1)`",
  colSums = "`op_sum(x, axis = 1)`",
  colMeans = "`op_mean(x, axis = 1)`",
  pmax = "`op_maximum()`",
  pmin = "`op_minimum()`",
  "%*%" = "`op_matmul()`",
  is.array = "`dim(x)`",
  is.matrix = "`length(dim(x))`",
  plogis = "`op_sigmoid()`"
)

# What to use instead of a function, as text. NULL if the function has no replacement.
advised <- function(name) {
  instead <- replacements[[name]]
  if (is.function(instead)) operations_like[[name]] else instead
}

reduce_axes <- function(operation, x, keep) operation(x, axis = setdiff(seq_len(x$ndim), keep))

# The operators whose other operand may be an R vector.
operators <- c("+", "-", "*", "/", "^", "%%", "%/%", "==", "!=", "<", "<=", ">", ">=", "&", "|")

is_tracer <- function(x) inherits(x, "jax._src.core.Tracer")

# A vector of several elements as a one-dimensional tensor, which Python would get as a list. Like
# the numbers of R, its elements take the dtype of a floating-point tensor.
as_tensor <- function(x, like = NULL) {
  if (!(is.numeric(x) || is.logical(x)) || is.object(x) || length(x) == 1) {
    return(x)
  }
  x <- if (is.null(dim(x))) array(x, length(x)) else x
  dtype <- if (is_tracer(like)) reticulate::py_str(like$dtype)
  is_cast <- is.double(x) && !is.null(dtype) && grepl("float", dtype, fixed = TRUE)
  keras3::op_convert_to_tensor(x, dtype = if (is_cast) dtype)
}

operator_mask <- function(operator) {
  force(operator)
  function(e1, e2) {
    if (missing(e2)) {
      operator(e1)
    } else if (is_tracer(e1)) {
      operator(e1, as_tensor(e2, e1))
    } else if (is_tracer(e2)) {
      operator(as_tensor(e1, e2), e2)
    } else {
      operator(e1, e2)
    }
  }
}

function_mask <- function(name, original) {
  replacement <- replacements[[name]]
  force(original)
  function(...) {
    is_tensor <- FALSE
    is_list <- FALSE
    for (i in seq_len(...length())) {
      is_tensor <- is_tensor || is_tracer(...elt(i))
      is_list <- is_list || is.list(...elt(i)) && !is.object(...elt(i))
    }
    # A list may hold tensors.
    if (!is_tensor || is_list) {
      original(...)
    } else if (is.function(replacement) && accepts(replacement, list(...))) {
      replacement(...)
    } else {
      stop_on_tracer(name, advised(name), call = caller_env())
    }
  }
}

# Whether a function has arguments for these values, such as `na.rm`.
accepts <- function(f, arguments) {
  known <- names(formals(f))
  all(names(arguments) %in% c("", known)) &&
    ("..." %in% known || length(arguments) <= length(known))
}

# The masks for a function: of the functions that it would get from R itself.
masks_for <- function(environment) {
  originals <- mget(
    c(setdiff(names(replacements), special_forms), operators),
    envir = environment,
    mode = "function",
    inherits = TRUE,
    ifnotfound = list(NULL)
  )
  is_rs <- vapply(names(originals), \(name) is_of_r(name, originals[[name]]), NA)
  masks <- Map(\(name, original) {
    if (name %in% operators) operator_mask(original) else function_mask(name, original)
  }, names(originals)[is_rs], originals[is_rs])
  list2env(masks, parent = environment)
}

# Whether a function is the one of R with this name, and not a function of the user or of a package.
is_of_r <- function(name, f) {
  places <- lapply(c("base", "stats", "utils"), asNamespace)
  any(vapply(places, \(place) identical(f, get0(name, place, inherits = FALSE)), NA))
}

# A function of a module, as Python calls it.
masked <- function(f) {
  environment(f) <- structure(masks_for(environment(f)), class = "kerasflax_masks")
  f
}

unmasked <- function(f) {
  if (inherits(environment(f), "kerasflax_masks")) {
    environment(f) <- parent.env(environment(f))
  }
  f
}
