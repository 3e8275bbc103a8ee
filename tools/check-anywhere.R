# R CMD check on the built package with this machine's R and Python, for `make check-anywhere`. It
# needs no shell, so it runs on Windows and macOS too. Fails on errors and warnings; notes depend on
# the system. Arguments are options of R CMD check.
dir.create("build", showWarnings = FALSE)
folder <- normalizePath("build")
r <- file.path(R.home("bin"), "R")

run <- function(...) {
  status <- system2(r, c("CMD", ...))
  if (status != 0) quit(status = status)
}

# `python` is the one into which the Makefile has just installed the requirements.
python <- system2("python", c("-c", shQuote("import sys; print(sys.executable)")), stdout = TRUE)
Sys.setenv(
  RETICULATE_PYTHON = python,
  NOT_CRAN = "true",
  `_R_CHECK_CRAN_INCOMING_` = "false",
  `_R_CHECK_FORCE_SUGGESTS_` = "false"
)

# R CMD build copies everything before it reads .Rbuildignore, so it gets what git knows.
files <- system2("git", "ls-files", stdout = TRUE)
source <- file.path(tempfile("build"), "kerasflax")
for (name in unique(dirname(files))) {
  dir.create(file.path(source, name), recursive = TRUE, showWarnings = FALSE)
}
invisible(file.copy(files, file.path(source, files)))
setwd(folder)
unlink(list.files(pattern = "^kerasflax_.*[.]tar[.]gz$"))
run("build", shQuote(source))
tarball <- list.files(pattern = "^kerasflax_.*[.]tar[.]gz$")
run("check", "--as-cran", "--no-manual", commandArgs(trailingOnly = TRUE), tarball)
log <- readLines(file.path("kerasflax.Rcheck", "00check.log"))
status <- sub("^Status: ", "", grep("^Status: ", log, value = TRUE))
cat("check-anywhere:", status, "\n")
quit(status = as.integer(!length(status) || grepl("ERROR|WARNING", status)))
