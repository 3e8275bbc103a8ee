# `python_floors` (R/zzz.R) and DESCRIPTION define the minimum versions. These tests compare all
# other places that state a minimum version with them.

source_file <- function(...) {
  path <- testthat::test_path("..", "..", ...)
  testthat::skip_if_not(file.exists(path), "not in a source tree")
  readLines(path)
}

test_that("pyproject.toml requires the minimum versions of the Python packages", {
  lines <- source_file("pyproject.toml")
  dependencies <- grep("^dependencies = ", lines, value = TRUE)
  for (name in names(python_floors)) {
    expect_match(dependencies, paste0("\"", name, ">=", python_floors[[name]], "\""), fixed = TRUE)
  }
})

test_that("the README names the minimum versions of R, keras3 and the Python packages", {
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

test_that("the README's table of tested versions matches the recorded versions", {
  record <- source_file("tests", "versions.csv")
  rows <- paste0("| ", gsub(",", " | ", record), " |")
  lines <- source_file("README.md")
  start <- match(rows[1], lines)
  # The second line of the table is a separator, and an empty line ends the table.
  expect_identical(lines[start + c(0, seq_along(rows) + 1)], c(rows, ""))
})

test_that("the minimum versions have been tested", {
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

test_that("DESCRIPTION and pyproject.toml have the same version", {
  lines <- source_file("pyproject.toml")
  expect_match(
    lines,
    paste0("^version = \"", utils::packageVersion("kerasflax"), "\"$"),
    all = FALSE
  )
})

test_that("the report asks for the minimum version of Python", {
  line <- grep("^requires-python", source_file("pyproject.toml"), value = TRUE)
  expect_identical(line, sprintf("requires-python = \">=%s\"", python_floor))
})
