# Runs the examples of all help pages in one session, on eight devices, in an empty folder. `make
# check` runs them on one device. Returns for each page its error, what it printed, and what it left
# behind.
run_examples <- function() {
  withr::local_envvar(
    NOT_CRAN = "true",
    XLA_FLAGS = "--xla_force_host_platform_device_count=8"
  )
  folder <- withr::local_tempdir()
  results <- callr::r(
    function() {
      library(kerasflax)
      stopifnot(kerasflax:::runs_examples())
      keras <- reticulate::import("keras")
      pages <- tools::Rd_db("kerasflax")
      left_behind <- function(page) {
        code <- tempfile(fileext = ".R")
        tools::Rd2ex(page, code)
        if (!file.exists(code)) {
          return(NULL)
        }
        state <- function() c(options(), Sys.getenv())
        before <- state()
        printed <- utils::capture.output(
          problem <- tryCatch(
            {
              source(code, echo = TRUE, local = new.env(parent = globalenv()))
              NULL
            },
            error = conditionMessage
          )
        )
        after <- state()
        list(
          problem = problem,
          printed = printed,
          changed = names(after)[!mapply(identical, after, before[names(after)])],
          distributed = !is.null(keras$distribution$distribution()),
          files = setdiff(list.files(), "Rplots.pdf")
        )
      }
      results <- lapply(pages, left_behind)
      results[lengths(results) > 0]
    },
    libpath = .libPaths(),
    wd = folder
  )
  names(results) <- sub("[.]Rd$", "", names(results))
  results
}

test_that("the examples of all help pages run on several devices, and leave nothing behind", {
  skip_without_flax()
  results <- run_examples()
  expect_gte(length(results), 13)
  for (page in names(results)) {
    result <- results[[page]]
    expect_null(result$problem, label = page)
    expect_identical(result$changed, character(), label = page)
    expect_false(result$distributed, label = page)
    expect_identical(result$files, character(), label = page)
  }
  expect_match(
    paste(results$flax_distribute$printed, collapse = "\n"),
    "kernel +3x64 .* -,model +96[.]00 B"
  )
})
