# Whether the examples of the help pages run: `@examplesIf kerasflax:::runs_examples()`.
#
# They run for a user, for a developer's checks (NOT_CRAN) and for the site (IN_PKGDOWN), if Python
# has Flax. On CRAN, nothing here touches Python.
runs_examples <- function() {
  is_set <- function(name) isTRUE(as.logical(Sys.getenv(name)))
  (rlang::is_interactive() || is_set("NOT_CRAN") || is_set("IN_PKGDOWN")) && has_flax()
}

# If no Python is running or named, reticulate may download one. Only a user can want that.
has_flax <- function() {
  named <- Sys.getenv("RETICULATE_PYTHON")
  (rlang::is_interactive() || reticulate::py_available() || nzchar(named) && file.exists(named)) &&
    reticulate::py_module_available("flax")
}
