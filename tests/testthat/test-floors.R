# `python_floors` (R/zzz.R) and DESCRIPTION are the tables; every other place that names a floor is held to them here.

source_file <- function(...) {
  path <- testthat::test_path("..", "..", ...)
  testthat::skip_if_not(file.exists(path), "not in a source tree")
  readLines(path)
}

test_that("pyproject.toml has the floors of Python packages", {
  lines <- source_file("pyproject.toml")
  dependencies <- grep("^dependencies = ", lines, value = TRUE)
  for (name in names(python_floors)) {
    expect_match(dependencies, paste0("\"", name, ">=", python_floors[[name]], "\""), fixed = TRUE)
  }
})

test_that("the README names the floors of R and Python packages", {
  text <- paste(source_file("README.md"), collapse = "\n")
  depends <- utils::packageDescription("kerasflax")$Depends
  floor <- \(name) sub(paste0(".*\\b", name, " \\(>= ([0-9.]+)\\).*"), "\\1", gsub("\\s+", " ", depends))
  expect_match(text, paste("R", sub("\\.0$", "", floor("R"))), fixed = TRUE)
  expect_match(text, paste("keras3", floor("keras3")), fixed = TRUE)
  for (name in names(python_floors)) {
    expect_match(text, paste(name, python_floors[[name]]), fixed = TRUE)
  }
})

test_that("the package has one version", {
  lines <- source_file("pyproject.toml")
  expect_match(lines, paste0("^version = \"", utils::packageVersion("kerasflax"), "\"$"), all = FALSE)
})
