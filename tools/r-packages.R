# The R packages that development needs, for tools/setup. DESCRIPTION is the only list of them.
#   lacking            prints those that are missing or too old
#   plan debian        prints where each will come from, "debian r-cran-x" or "repository x":
#                      from Debian, if its version is new enough
#   plan no-debian     does the same for a user who cannot install Debian's packages
#   install            installs from the repository what is lacking
#   update             updates what came from the repository
#   floors             installs the lower bounds in DESCRIPTION, if the repository or its archive
#                      has them

# Further arguments of the first four commands name fields Config/Needs/<name> to include.

hard <- c("Depends", "Imports", "LinkingTo")
base <- rownames(installed.packages(priority = "base"))
installed <- installed.packages()

fail <- function(what, remedy) {
  cat("setup: ", what, "\n       ", remedy, "\n", sep = "", file = stderr())
  quit(status = 1)
}

# The lower bounds in fields of one description, such as c(cli = "3.6.0", callr = "0")
floors <- function(description, fields) {
  entries <- description[intersect(fields, names(description))]
  entries <- trimws(unlist(strsplit(entries[!is.na(entries)], ",")))
  name <- sub("[[:space:](].*", "", entries)
  has_floor <- grepl(">=", entries)
  floor <- ifelse(has_floor, sub(".*>=[[:space:]]*([0-9.-]+).*", "\\1", entries), "0")
  keep <- nzchar(name) & !name %in% c("R", base)
  stats::setNames(floor[keep], name[keep])
}

# Whether a table with one row per package has the package in a sufficient version
has <- function(table, name, floor) {
  name %in% rownames(table) && numeric_version(table[name, "Version"]) >= floor
}

has_each <- function(table, needed) {
  vapply(names(needed), function(name) has(table, name, needed[[name]]), NA)
}

# Follows dependencies from package to package, each read from where the package is or will come
# from. Debian's packages bring their own dependencies.
lacking <- function(debian = NULL, repository = NULL) {
  fields <- c(hard, "Suggests", paste0("Config/Needs/", c("development", needs)))
  queue <- floors(read.dcf("DESCRIPTION")[1, ], fields)
  asked <- character()
  while (length(queue)) {
    name <- names(queue)[1]
    floor <- queue[[1]]
    queue <- queue[-1]
    if (name %in% names(asked) && numeric_version(asked[[name]]) >= floor) next
    asked[[name]] <- floor
    if (has(installed, name, floor)) {
      queue <- c(queue, floors(installed[name, ], hard))
    } else if (!has(debian, tolower(name), floor) && has(repository, name, floor)) {
      queue <- c(queue, floors(repository[name, ], hard))
    }
  }
  asked[!has_each(installed, asked)]
}

# Debian's R packages and the versions that apt would install. NULL if R is not Debian's, because
# another R does not look in the folder where apt puts them.
debian_packages <- function() {
  if (!identical(R.home(), "/usr/lib/R")) return(NULL)
  Sys.setenv(LC_ALL = "C")
  names <- system2("apt-cache", c("pkgnames", "r-cran-"), stdout = TRUE)
  policy <- system2("apt-cache", c("policy", names), stdout = TRUE)
  name <- sub("^r-cran-(.*):$", "\\1", grep("^r-cran-.*:$", policy, value = TRUE))
  version <- sub("^  Candidate: ", "", grep("^  Candidate: ", policy, value = TRUE))
  # The version 1:1.0.1+dfsg-2 is 1.0.1 upstream.
  version <- sub("[+~].*", "", sub("-[^-]*$", "", sub("^[0-9]+:", "", version)))
  known <- grepl("^[0-9]+([.-][0-9]+)+$", version)
  matrix(version[known], dimnames = list(name[known], "Version"))
}

repository_url <- function() {
  url <- Sys.getenv("KERASFLAX_CRAN")
  if (!nzchar(url) && dir.exists("../shared/cran")) url <- "../shared/cran"
  if (dir.exists(url)) url <- paste0("file://", normalizePath(url))
  if (nzchar(url)) return(url)
  # Keep the mirror that the user has chosen.
  if (getOption("repos")[["CRAN"]] == "@CRAN@") utils::chooseCRANmirror(ind = 1, local.only = TRUE)
  getOption("repos")
}

repository_packages <- function(url) {
  packages <- suppressWarnings(
    tryCatch(available.packages(repos = url), error = function(e) NULL)
  )
  if (NROW(packages)) return(packages)
  fail(
    paste0(
      "R packages are missing, and there is no CRAN repository at ",
      paste(url, collapse = ", "), "."
    ),
    "Type: KERASFLAX_CRAN=<address of a CRAN mirror, or folder that holds src/contrib> make setup"
  )
}

plan <- function(with_debian) {
  url <- repository_url()
  repository <- repository_packages(url)
  debian <- if (with_debian) debian_packages()
  needed <- lacking(debian, repository)
  in_debian <- has_each(debian, stats::setNames(needed, tolower(names(needed))))
  nowhere <- needed[!in_debian & !has_each(repository, needed)]
  if (length(nowhere)) {
    floor <- ifelse(nowhere == "0", "", paste0(" (>= ", nowhere, ")"))
    what <- paste0(names(nowhere), floor, collapse = ", ")
    debs <- paste0("r-cran-", tolower(names(nowhere)), collapse = " ")
    fail(
      paste0(
        "The R packages ", what, " cannot be installed; they are not in ",
        paste(url, collapse = ", "), "."
      ),
      paste0(
        if (!with_debian) {
          paste0("Type as root: apt-get install ", debs, "; then: make setup\n       Or type")
        },
        if (with_debian) "Type",
        ": KERASFLAX_CRAN=<address of a CRAN mirror> make setup"
      )
    )
  }
  writeLines(sprintf("debian r-cran-%s", tolower(names(needed)[in_debian])))
  writeLines(sprintf("repository %s", names(needed)[!in_debian]))
}

install <- function() {
  url <- repository_url()
  needed <- names(lacking(repository = repository_packages(url)))
  library <- .libPaths()[1]
  if (file.access(library, 2) != 0) {
    library <- path.expand(Sys.getenv("R_LIBS_USER"))
    dir.create(library, recursive = TRUE, showWarnings = FALSE)
    .libPaths(library)
  }
  if (length(needed)) {
    install.packages(needed, lib = library, repos = url, Ncpus = parallel::detectCores())
  }
  installed <<- installed.packages()
  left <- lacking()
  if (length(left)) stop("not installed: ", paste(names(left), left, collapse = ", "))
}

# Prints one line with the lower bounds that are not available and the versions used instead.
install_floors <- function() {
  # In this order, each package finds its dependencies installed.
  needed <- floors(read.dcf("DESCRIPTION")[1, ], c("Imports", "Suggests", "Depends"))
  needed <- needed[needed != "0"]
  folder <- contrib.url(repository_url()[1], "source")
  for (name in names(needed)) {
    version <- unname(installed[match(name, rownames(installed)), "Version"])
    if (identical(version, needed[[name]])) next
    file <- sprintf("%s_%s.tar.gz", name, needed[[name]])
    here <- file.path(tempdir(), file)
    for (url in file.path(folder, c(file, file.path("Archive", name, file)))) {
      got <- suppressWarnings(
        tryCatch(download.file(url, here, quiet = TRUE), error = function(e) 1L)
      )
      if (got == 0) {
        install.packages(here, lib = .libPaths()[1], repos = NULL, type = "source")
        break
      }
    }
  }
  table <- installed.packages()
  used <- c(table[match(names(needed), rownames(table)), "Version"], as.character(getRversion()))
  depends <- read.dcf("DESCRIPTION")[[1, "Depends"]]
  needed <- c(needed, R = sub(".*\\bR \\(>= ([0-9.]+)\\).*", "\\1", depends))
  other <- paste0(names(needed), " ", needed, " (used: ", used, ")")[used != needed]
  if (length(other)) cat("floors: not available: ", paste(other, collapse = ", "), "\n", sep = "")
}

arguments <- commandArgs(trailingOnly = TRUE)
needs <- setdiff(arguments[-1], c("debian", "no-debian"))
switch(arguments[1],
  lacking = writeLines(names(lacking())),
  plan = plan(arguments[2] == "debian"),
  floors = install_floors(),
  install = install(),
  update = update.packages(.libPaths()[1], repos = repository_url(), ask = FALSE)
)
