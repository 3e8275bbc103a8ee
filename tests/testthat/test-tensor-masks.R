x <- array(c(-1.5, 0.5, 2, 3, -4, 5), c(2, 3))
w <- matrix(1:6 + 0, 3)

# The output of a module whose method is this R function, for an R array.
by_module <- function(f, inputs = x) {
  make <- flax_module("Net", call = f)
  as.array(layer_flax_module_wrapper(inputs, make()))
}

# The same if the function is called by the method, as R code from elsewhere is.
by_helper <- function(f) by_module(function(self, inputs) f(self, inputs))

test_that("functions that are not generic give the same results for tensors as for arrays", {
  skip_without_flax()
  for (f in list(
    function(self, inputs) inputs %*% w,
    function(self, inputs) rowSums(inputs),
    function(self, inputs) rowMeans(inputs),
    function(self, inputs) colSums(inputs),
    function(self, inputs) colMeans(inputs),
    function(self, inputs) pmax(inputs, 0),
    function(self, inputs) pmin(inputs, 2 * inputs, 1),
    function(self, inputs) plogis(inputs),
    function(self, inputs) if (is.matrix(inputs) && is.array(inputs)) inputs else -inputs
  )) {
    expect_equal(as.vector(by_module(f)), as.vector(f(NULL, x)), tolerance = 1e-6)
  }
})

test_that("a vector is combined with the last axis, and takes the tensor's dtype", {
  skip_without_flax()
  rows <- matrix(c(1, 2, 3), 2, 3, byrow = TRUE)
  expect_equal(by_module(function(self, inputs) inputs * c(1, 2, 3)), x * rows)
  expect_equal(by_module(function(self, inputs) c(1, 2, 3) - inputs), rows - x)
  expect_equal(by_module(function(self, inputs) -inputs + c(1L, 2L, 3L)), rows - x)
  expect_equal(
    by_module(function(self, inputs) op_cast(inputs > c(1, 2, 3), "int32")),
    (x > rows) + 0L
  )
  seen <- NULL
  by_module(function(self, inputs) {
    half <- op_cast(inputs, "bfloat16")
    seen <<- reticulate::py_str((half * c(1, 2, 3))$dtype)
    inputs / dim(inputs)[[1]]
  })
  expect_identical(seen, "bfloat16")
})

test_that("other functions stop and name what to use instead", {
  skip_without_flax()
  calls <- rlang::exprs(
    apply(inputs, 1, sum), which.max(inputs), var(inputs), sd(inputs), cor(inputs), c(inputs, 1),
    c(1, inputs), sapply(inputs, identity), lapply(inputs, identity), Map(identity, inputs),
    matrix(inputs, 3), array(inputs, c(3, 2)), ifelse(inputs > 0, inputs, 0), cumsum(inputs),
    sort(inputs), order(inputs), outer(inputs, inputs), crossprod(inputs), median(inputs),
    quantile(inputs), unique(inputs), as.vector(inputs), head(inputs, 1), inputs %in% 1,
    which(inputs > 0), sweep(inputs, 2, 1), length(inputs) <- 2, dim(inputs) <- c(3, 2),
    for (row in inputs) row, while (inputs > 0) inputs, drop(inputs), as.array(inputs), cat(inputs),
    svd(inputs), kronecker(inputs, inputs), weighted.mean(inputs, 1:3),
    rowSums(inputs, na.rm = TRUE), rowSums(inputs, dims = 2),
    pmax(inputs, 0, na.rm = TRUE), plogis(inputs, 1), inputs > 0 && TRUE,
    FALSE || inputs > 0, switch(inputs, 1), sum(inputs, axis = 1), max(inputs, axis = 1),
    pnorm(inputs), atan2(inputs, 1), replace(inputs, 1, 0), Reduce(`+`, inputs)
  )
  for (call in calls) {
    f <- rlang::new_function(formals(function(self, inputs) NULL), call)
    expect_error(by_module(f), "[Uu]se ", info = deparse(call))
  }
  expect_snapshot(error = TRUE, transform = scrub, {
    by_module(function(self, inputs) which.max(inputs))
    by_module(function(self, inputs) for (row in inputs) row)
    by_module(function(self, inputs) c(inputs, inputs))
  })
})

test_that("functions outside of a module's own get the same advice with R's error", {
  skip_without_flax()
  expect_snapshot(error = TRUE, transform = scrub, {
    by_helper(function(self, inputs) rowSums(inputs))
    by_helper(function(self, inputs) var(inputs))
    by_helper(function(self, inputs) inputs * c(1, 2, 3))
    by_helper(function(self, inputs) apply(inputs, 1, sum))
    by_helper(function(self, inputs) ifelse(inputs > 0, 1, 0))
    by_helper(function(self, inputs) svd(inputs))
  })
})

test_that("what works in R and not on tensors gets advice with the error of JAX", {
  skip_without_flax()
  expect_error(by_helper(function(self, inputs) kronecker(inputs, inputs)), "has no values yet")
  expect_error(by_helper(function(self, inputs) as.array(inputs)), "has no values yet")
  expect_error(by_module(function(self, inputs) inputs / rowSums(inputs)), "keepdims = TRUE")
})

test_that("outside of a module's own functions, `%*%` works where R has made it generic", {
  skip_without_flax()
  product <- function() by_helper(function(self, inputs) inputs %*% w)
  if (getRversion() >= "4.3") {
    expect_equal(product(), x %*% w, tolerance = 1e-6)
  } else {
    expect_error(product(), "Use `op_matmul()`", fixed = TRUE)
  }
})

test_that("the user's own functions and R's functions of other values are unchanged", {
  skip_without_flax()
  var <- function(x) op_var(x, axis = 2)
  outputs <- by_module(function(self, inputs) {
    stopifnot(identical(c(1L, 2L), 1:2), identical(sapply(1:2, identity), 1:2))
    parts <- c(list(inputs), list(inputs))
    var(parts[[2]]) + max(c(1, 0)) - sd(c(1, 1))
  })
  expect_equal(as.vector(outputs), apply(x, 1, \(row) mean((row - mean(row))^2)) + 1,
    tolerance = 1e-6
  )
})

test_that("every operation that advice names exists in keras3", {
  text <- unlist(Filter(is.character, c(kerasflax:::replacements, kerasflax:::operations_like)))
  named <- unlist(regmatches(text, gregexpr("op_[a-z_]+", text)))
  expect_identical(setdiff(named, getNamespaceExports("keras3")), character())
  expect_setequal(
    names(kerasflax:::operations_like),
    names(Filter(is.function, kerasflax:::replacements))
  )
})
