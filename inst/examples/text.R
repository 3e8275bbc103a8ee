# Classifies texts: names the language of a line from its characters.
#
#   Rscript text.R [folder for the plot]
#
# The data are R's own messages, which R contains in many languages (the `.mo` files of the package
# `translations`). The translations of a message are all in the same part of the data, so that no
# line to test has a twin among the lines to train on.

library(kerasflax)
folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]
set_random_seed(1)

# The data: one row for each line ----------------------------------------------------------------

languages <- c(
  da = "Danish", de = "German", fr = "French", it = "Italian", pl = "Polish",
  pt_BR = "Portuguese", tr = "Turkish"
)

# A catalogue of GNU gettext is a header of integers, two tables of lengths and offsets, and the
# strings.
read_catalogue <- function(file) {
  bytes <- readBin(file, "raw", file.size(file))
  integers <- function(offset, n) {
    readBin(bytes[offset + seq_len(4 * n)], "integer", n, endian = "little")
  }
  strings <- function(table) {
    places <- matrix(integers(table, 2 * integers(8, 1)), 2)
    apply(places, 2, \(place) {
      text <- bytes[place[[2]] + seq_len(place[[1]])]
      # A message with plural forms has several strings. The first is enough.
      text <- rawToChar(text[cumsum(text == 0) == 0])
      Encoding(text) <- "UTF-8"
      text
    })
  }
  data.frame(message = strings(integers(12, 1)), text = strings(integers(16, 1)))
}

read_language <- function(code) {
  place <- file.path(R.home("library"), "translations", code, "LC_MESSAGES")
  files <- dir(place, "[.]mo$", full.names = TRUE)
  if (length(files) == 0) {
    stop("This R has no messages in ", languages[[code]], ": ", place, " is empty.")
  }
  lines <- do.call(rbind, lapply(files, read_catalogue))
  # The empty message is the header of a catalogue. Lines that nobody translated are English.
  lines <- lines[nzchar(lines$message) & lines$text != lines$message & validUTF8(lines$text), ]
  data.frame(lines, language = languages[[code]])
}

lines <- do.call(rbind, lapply(names(languages), read_language))
lines$language <- factor(lines$language)
lines <- lines[!duplicated(lines$text), ]
# Code and placeholders are the same in all languages, so keep letters and spaces only.
lines$text <- trimws(gsub("[^[:alpha:]]+", " ", gsub("'[^']*'|%[^ ]*", " ", lines$text)))
lines <- lines[nchar(lines$text) >= 20, ]

messages <- unique(lines$message)
held_out <- lines$message %in% sample(messages, length(messages) / 4)
# The same number of lines in each language.
sample_lines <- function(lines, n) {
  lines[unlist(tapply(seq_len(nrow(lines)), lines$language, sample, n)), ]
}
train <- sample_lines(lines[!held_out, ], 800)
test <- sample_lines(lines[held_out, ], 250)

# Tokens: an integer for each of the first 20 characters -----------------------------------------

line_length <- 20L
alphabet <- names(sort(table(unlist(strsplit(tolower(train$text), ""))), decreasing = TRUE))
as_tokens <- function(text) {
  characters <- strsplit(substr(tolower(text), 1, line_length), "")
  # 0 pads short lines, and 1 is a character that is not in the alphabet.
  t(vapply(
    characters,
    \(x) c(match(x, alphabet, nomatch = 0L) + 1L, integer(line_length - length(x))),
    integer(line_length)
  ))
}

# The module: an embedding, convolutions over the characters, the maximum over the line ----------

nn <- reticulate::import("flax.linen")

language_net <- flax_module("LanguageNet",
  tokens = flax_field("integer"),
  classes = flax_field("integer"),
  width = 64L,
  call = function(self, inputs, training = FALSE) {
    x <- (nn$Embed(self$tokens, self$width))(inputs)
    x <- nn$relu((nn$Conv(self$width, kernel_size = 3))(x))
    x <- nn$relu((nn$Conv(self$width, kernel_size = 3))(x))
    x <- op_max(x, axis = 2)
    x <- (nn$Dropout(0.3))(x, deterministic = !training)
    (nn$Dense(self$classes))(x)
  }
)

input <- keras_input(line_length, dtype = "int32")
output <- input |>
  layer_flax_module_wrapper(
    language_net(tokens = length(alphabet) + 2, classes = nlevels(lines$language)),
    name = "language_net"
  ) |>
  layer_activation_softmax()
model <- keras_model(input, output)
model |> compile(
  optimizer = optimizer_adam(0.003),
  loss = "sparse_categorical_crossentropy",
  metrics = "accuracy"
)
model |> fit(
  as_tokens(train$text), as.integer(train$language) - 1L,
  batch_size = 64, epochs = 10, verbose = 2
)

# The baseline: naive Bayes on the letters, without their order ----------------------------------

letter_counts <- function(text) {
  t(apply(as_tokens(text), 1, tabulate, nbins = length(alphabet) + 1))
}
letters_of <- rowsum(letter_counts(train$text), train$language) + 1
scores <- letter_counts(test$text) %*% t(log(letters_of / rowSums(letters_of)))
naive_bayes <- rownames(letters_of)[max.col(scores)]

# The results ------------------------------------------------------------------------------------

predict_language <- function(text) {
  probabilities <- predict(model, as_tokens(text), verbose = 0)
  data.frame(
    text,
    language = factor(levels(lines$language)[max.col(probabilities)], levels(lines$language)),
    probability = round(apply(probabilities, 1, max), 2)
  )
}

cat("\nThe table has too many rows, in seven languages:\n")
print(
  predict_language(c(
    "die Tabelle hat zu viele Zeilen", "le tableau contient trop de lignes",
    "la tabella contiene troppe righe", "a tabela tem linhas demais",
    "tabellen har for mange linjer", "tabela ma zbyt wiele wierszy",
    "tabloda \u00e7ok fazla sat\u0131r var"
  )),
  right = FALSE, row.names = FALSE
)

predicted <- predict_language(test$text)$language
confusion <- prop.table(table(actual = test$language, predicted), 1)

plot_file <- file.path(normalizePath(folder), "text.png")
png(plot_file, width = 800, height = 700, res = 110)
par(mar = c(7, 7, 3, 1), las = 2)
n <- nrow(confusion)
image(
  1:n, 1:n, t(confusion)[, n:1],
  col = hcl.colors(20, "Blues", rev = TRUE), zlim = 0:1, axes = FALSE, xlab = "", ylab = ""
)
title("Language (rows) and prediction (columns), in %", font.main = 1)
axis(1, 1:n, colnames(confusion), tick = FALSE)
axis(2, n:1, rownames(confusion), tick = FALSE)
text(
  col(confusion), n + 1 - row(confusion), round(100 * confusion),
  col = ifelse(confusion > 0.5, "white", "black")
)
invisible(dev.off())

accuracy <- mean(predicted == test$language)
letters_accuracy <- mean(naive_bayes == test$language)
cat(sprintf(
  paste(
    "\nAccuracy on %d lines, by their first %d characters: %.1f %%",
    "(naive Bayes on letters: %.1f %%)\n"
  ),
  nrow(test), line_length, 100 * accuracy, 100 * letters_accuracy
))
cat("Plot:", plot_file, "\n")
stopifnot(accuracy > letters_accuracy + 0.05)
