# Transfer learning: a small BERT, written in R, learns to guess masked words in lines without
# labels. Its weights are then read by name into a classifier, which learns from five labeled
# lines of each language which of ten languages a line is in.
#
#   Rscript bert.R
#
# The data are R's own messages, which R contains in many languages (the `.mo` files of the package
# `translations`). Five lines contain few words of a language. Pre-training shows which words occur
# together, so that the classifier also knows words that it has not seen with a label.

library(kerasflax)
reticulate::py_require("safetensors")
set_random_seed(1)

# The data: one row for each line ----------------------------------------------------------------

languages <- c(
  da = "Danish", de = "German", es = "Spanish", fr = "French", it = "Italian", lt = "Lithuanian",
  nn = "Norwegian", pl = "Polish", pt_BR = "Portuguese", tr = "Turkish"
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
lines <- lines[!duplicated(lines$text), ]
# Code and placeholders are the same in all languages, so keep letters and spaces only.
lines$text <- gsub("[^[:alpha:]]+", " ", gsub("'[^']*'|%[^ ]*", " ", lines$text))
lines$text <- tolower(trimws(lines$text))
lines <- lines[nchar(lines$text) >= 20, ]
lines$label <- match(lines$language, languages) - 1L
# A third of the messages is for testing, in all languages.
messages <- unique(lines$message)
lines$is_test <- lines$message %in% sample(messages, length(messages) / 3)

# Tokens: an integer for each of the first 12 words ----------------------------------------------

words <- strsplit(lines$text, " ")
vocabulary <- names(sort(table(unlist(words[!lines$is_test])), decreasing = TRUE))[1:3000]
first_words <- t(vapply(words, `[`, character(12), 1:12))
# 0 pads short lines, 1 masks a word, and 2 is a word that is not in the vocabulary.
tokens <- matrix(match(first_words, vocabulary, 0L) + 2L, ncol = 12)
tokens[is.na(first_words)] <- 0L

# The modules: BERT, and two models that contain it ----------------------------------------------

nn <- reticulate::import("flax.linen")
jnp <- reticulate::import("jax.numpy")

embeddings <- flax_module("Embeddings",
  words = 3003L, length = 12L, width = 32L, rate = 0.1,
  call = function(self, inputs, training = FALSE) {
    words <- (nn$Embed(self$words, self$width, name = "word_embeddings"))(inputs)
    position <- jnp$arange(dim(inputs)[[2]])
    places <- (nn$Embed(self$length, self$width, name = "position_embeddings"))(position)
    x <- (nn$LayerNorm(name = "layer_norm"))(words + places)
    (nn$Dropout(self$rate))(x, deterministic = !training)
  }
)

block <- flax_module("Block",
  heads = 4L, rate = 0.1,
  call = function(self, inputs, mask, training = FALSE) {
    width <- dim(inputs)[[3]]
    x <- (nn$MultiHeadDotProductAttention(self$heads, name = "attention"))(inputs, mask = mask)
    x <- (nn$Dropout(self$rate))(x, deterministic = !training)
    inputs <- (nn$LayerNorm(name = "attention_norm"))(inputs + x)
    x <- nn$gelu((nn$Dense(4 * width, name = "intermediate"))(inputs))
    x <- (nn$Dense(width, name = "output"))(x)
    x <- (nn$Dropout(self$rate))(x, deterministic = !training)
    (nn$LayerNorm(name = "output_norm"))(inputs + x)
  }
)

encoder <- flax_module("Encoder",
  blocks = 1L,
  setup = function(self) {
    self$layer <- lapply(seq_len(self$blocks), \(i) block())
  },
  call = function(self, inputs, mask, training = FALSE) {
    for (layer in self$layer) inputs <- layer(inputs, mask, training = training)
    inputs
  }
)

bert <- flax_module("Bert",
  setup = function(self) {
    self$embeddings <- embeddings()
    self$encoder <- encoder()
  },
  call = function(self, inputs, training = FALSE) {
    x <- self$embeddings(inputs, training = training)
    # No word looks at the padding.
    mask <- nn$make_attention_mask(inputs > 0, inputs > 0)
    self$encoder(x, mask, training = training)
  }
)

# Which words are at these places? One output for each word of the vocabulary.
masked_words <- flax_module("MaskedWords",
  setup = function(self) {
    self$bert <- bert()
    self$head <- nn$Dense(3003)
  },
  call = function(self, inputs, training = FALSE) {
    c(tokens, places) %<-% inputs
    x <- self$bert(tokens, training = training)
    self$head(op_take_along_axis(x, op_expand_dims(places, 3), axis = 2))
  }
)

# Which language is the line in? The head gets the mean over the words.
language_of <- flax_module("LanguageOf",
  setup = function(self) {
    self$bert <- bert()
    self$head <- nn$Dense(10)
  },
  call = function(self, inputs, training = FALSE) {
    x <- self$bert(inputs, training = training)
    is_word <- op_cast(op_expand_dims(inputs > 0, 3), "float32")
    x <- op_sum(x * is_word, axis = 2) / op_sum(is_word, axis = 2)
    self$head(x)
  }
)

compiled <- function(model, rate) {
  loss <- loss_sparse_categorical_crossentropy(from_logits = TRUE)
  compile(model, optimizer_adam(rate), loss, metrics = "accuracy")
  model
}

# Pre-training: guess two masked words of each line ----------------------------------------------

# All batches of 128 lines are full, because a batch of another size would be compiled again.
long <- sample(which(!lines$is_test & rowSums(tokens > 2) >= 4), 12800)
places <- t(apply(tokens[long, ] > 2, 1, \(is_known) sample(which(is_known), 2)))
at <- cbind(rep(seq_along(long), 2), c(places))
masked <- tokens[long, ]
answers <- matrix(masked[at], ncol = 2)
masked[at] <- 1L

inputs <- list(keras_input(12, dtype = "int32"), keras_input(2, dtype = "int32"))
layer <- layer_flax_module_wrapper(module = masked_words(), name = "guess")
pretrained <- compiled(keras_model(inputs, layer(inputs)), 0.006)
history <- fit(
  pretrained, list(masked, places - 1L), answers,
  batch_size = 128, epochs = 4, verbose = 0
)
cat(sprintf(
  "Masked words of %d lines: %.0f %% right, %.0f %% if it is always the most frequent word\n",
  length(long), 100 * tail(history$metrics$accuracy, 1), 100 * max(prop.table(table(answers)))
))
file <- file.path(tempdir(), "bert.safetensors")
flax_write(pretrained, file, path = "**/bert/**")

# Transfer: learn the language from five labeled lines of each ----------------------------------

classifier <- function() {
  input <- keras_input(12, dtype = "int32")
  layer <- layer_flax_module_wrapper(module = language_of(), name = "language")
  keras_model(input, layer(input))
}
lines_of_each <- function(is_wanted, n) {
  unlist(lapply(seq_along(languages) - 1, \(i) sample(which(is_wanted & lines$label == i), n)))
}
test <- lines_of_each(lines$is_test, 150)

bert_weights <- suppressMessages(flax_read(file, like = classifier(), path = "**/bert/**"))
# A model is compiled once for all draws, because that takes longer than to train it.
models <- list(frozen = classifier(), trained = classifier())
flax_freeze(models$frozen, "**/bert/**")
models <- lapply(models, compiled, rate = 0.01)
random_weights <- flax_variables(models$trained)

train_classifier <- function(labeled, weights, bert) {
  model <- models[[bert]]
  # Start again: the weights, a new head among them, and what the optimizer stores.
  flax_variables(model) <- random_weights
  if (weights == "pre-trained") flax_variables(model) <- bert_weights
  model$optimizer <- optimizer_adam(0.01)
  fit(model, tokens[labeled, ], lines$label[labeled], batch_size = 10, epochs = 30, verbose = 0)
  predict(model, tokens[test, ], batch_size = 500, verbose = 0)
}
accuracy_of <- function(logits) mean(max.col(logits, "first") == lines$label[test] + 1)

# The simple method: naive Bayes on the words.
counts <- function(rows) t(apply(tokens[rows, ], 1, tabulate, nbins = 3002))
test_counts <- counts(test)
naive_bayes <- function(labeled) {
  words_of <- rowsum(counts(labeled), lines$label[labeled]) + 1
  test_counts %*% t(log(words_of / rowSums(words_of)))
}

# Three draws of the labeled lines, because five lines are a matter of luck.
variants <- data.frame(
  weights = c("random", "random", "pre-trained", "pre-trained"),
  bert = c("frozen", "trained", "frozen", "trained")
)
accuracy <- matrix(0, 5, 3)
for (draw in 1:3) {
  labeled <- lines_of_each(!lines$is_test, 5)
  logits <- Map(train_classifier, list(labeled), variants$weights, variants$bert)
  accuracy[, draw] <- vapply(c(logits, list(naive_bayes(labeled))), accuracy_of, 0)
}

# The results ------------------------------------------------------------------------------------

mean_accuracy <- rowMeans(accuracy)
results <- rbind(variants, data.frame(weights = "naive Bayes", bert = ""))
results[paste("draw", 1:3)] <- sprintf("%.1f %%", 100 * accuracy)
results$mean <- sprintf("%.1f %%", 100 * mean_accuracy)
cat(sprintf(
  "\nLanguage of %d lines, after %d with labels: accuracy\n", length(test), length(labeled)
))
print(results, row.names = FALSE)

# A frozen BERT is the one that was read, and training changes it.
parameters <- \(model) flax_variables(model)[[1]]$params$bert
stopifnot(
  identical(parameters(models$frozen), parameters(pretrained)),
  !identical(parameters(models$trained), parameters(pretrained))
)
model_file <- file.path(tempdir(), "language.keras")
save_model(models$frozen, model_file)
again <- predict(load_model(model_file), tokens[test, ], batch_size = 500, verbose = 0)
stopifnot(identical(again, logits[[3]]))

cat(sprintf(
  "\nMean accuracy: %.1f %% with pre-training, %.1f %% without (naive Bayes on words: %.1f %%)\n",
  100 * mean_accuracy[[3]], 100 * mean_accuracy[[2]], 100 * mean_accuracy[[5]]
))
stopifnot(mean_accuracy[3:4] > max(mean_accuracy[c(1, 2, 5)]) + 0.15)
