# The R code of a page in Markdown, without the blocks that install packages.
r_code_of <- function(page) {
  lines <- readLines(page, encoding = "UTF-8")
  fences <- grep("^```", lines)
  starts <- fences[lines[fences] == "```r"]
  blocks <- lapply(starts, \(start) lines[(start + 1):(min(fences[fences > start]) - 1)])
  blocks[!vapply(blocks, \(block) any(grepl("install.packages(", block, fixed = TRUE)), NA)]
}

test_that("the README's R code runs from top to bottom in one session, in an empty folder", {
  skip_without_flax()
  readme <- "../../README.md"
  skip_if_not(file.exists(readme), "README.md is not part of the package")
  blocks <- r_code_of(readme)
  expect_gt(length(blocks), 8)
  folder <- withr::local_tempdir()
  script <- withr::local_tempfile(lines = unlist(blocks), fileext = ".R")
  result <- callr::rscript(
    script,
    libpath = .libPaths(),
    env = c(callr::rcmd_safe_env(), XLA_FLAGS = "--xla_force_host_platform_device_count=8"),
    wd = folder,
    fail_on_status = FALSE,
    show = FALSE,
    stderr = "2>&1"
  )
  expect_identical(result$status, 0L, label = result$stdout)
})
