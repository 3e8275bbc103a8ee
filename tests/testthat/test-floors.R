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
  floor <- \(name) {
    sub(paste0(".*\\b", name, " \\(>= ([0-9.]+)\\).*"), "\\1", gsub("\\s+", " ", depends))
  }
  expect_match(text, paste("R", sub("\\.0$", "", floor("R"))), fixed = TRUE)
  expect_match(text, paste("keras3", floor("keras3")), fixed = TRUE)
  for (name in names(python_floors)) {
    expect_match(text, paste(name, python_floors[[name]]), fixed = TRUE)
  }
})

test_that("the README's table of tested versions is the one that the tests recorded", {
  record <- source_file("tests", "versions.csv")
  rows <- paste0("| ", gsub(",", " | ", record), " |")
  lines <- source_file("README.md")
  start <- match(rows[1], lines)
  # The second line of the table is a rule; an empty line ends the table.
  expect_identical(lines[start + c(0, seq_along(rows) + 1)], c(rows, ""))
})

test_that("the floors were tested as they are", {
  skip_if(nzchar(Sys.getenv("KERASFLAX_VENV")), "`make floors` records what it ran after the tests")
  record <- utils::read.csv(
    text = source_file("tests", "versions.csv"),
    row.names = 1,
    colClasses = "character"
  )
  dependencies <- grep("^dependencies = ", source_file("pyproject.toml"), value = TRUE)
  for (name in c("jax", "flax", "keras", "numpy")) {
    expect_match(dependencies, paste0("\"", name, ">=", record["floors", name], "\""), fixed = TRUE)
  }
})

test_that("the package has one version", {
  lines <- source_file("pyproject.toml")
  expect_match(
    lines,
    paste0("^version = \"", utils::packageVersion("kerasflax"), "\"$"),
    all = FALSE
  )
})
