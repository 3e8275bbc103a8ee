# Classifies the rows of a data frame with numeric columns, a factor and missing values, and
# compares the result with logistic regression.
#
#   Rscript tabular.R [folder for the plot]
#
# The data are `airquality` of R: daily weather in New York from May to September 1973. The module
# tells days with much ozone (above the median) from days with little. The sun's radiation is
# missing on some days. There are only 116 days with ozone, so each is predicted once, by a model
# that was trained on the other folds.

library(kerasflax)
folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]
set_random_seed(1)

# The data: a data frame, as it comes ------------------------------------------------------------

days <- airquality[!is.na(airquality$Ozone), ]
days$Month <- factor(month.abb[days$Month], levels = month.abb[5:9])
days$Level <- factor(ifelse(days$Ozone > median(days$Ozone), "much", "little"))
numeric_columns <- c("Solar.R", "Wind", "Temp")
str(days[c(numeric_columns, "Month", "Level")])

# Numeric columns are scaled with the mean and the deviation of the rows to train on. A missing
# value becomes the mean, and one more column says where that happened. The codes of a factor start
# at 1 in R and at 0 in an embedding.
encoder <- function(train) {
  center <- vapply(train[numeric_columns], mean, 0, na.rm = TRUE)
  spread <- vapply(train[numeric_columns], sd, 0, na.rm = TRUE)
  function(rows) {
    numbers <- scale(rows[numeric_columns], center, spread)
    gaps <- is.na(numbers)
    numbers[gaps] <- 0
    list(
      numbers = unname(cbind(numbers, gaps)),
      month = matrix(as.integer(rows$Month) - 1L)
    )
  }
}

# The module: an embedding for the factor, next to the numbers -----------------------------------

nn <- reticulate::import("flax.linen")

tabular_net <- flax_module("TabularNet",
  months = flax_field("integer"),
  classes = flax_field("integer"),
  units = 32L,
  rate = 0.3,
  call = function(self, numbers, month, training = FALSE) {
    season <- (nn$Embed(self$months, 2))(op_squeeze(month, axis = 2))
    x <- op_concatenate(list(numbers, season), axis = -1)
    x <- nn$relu((nn$Dense(self$units))(x))
    x <- (nn$Dropout(self$rate))(x, deterministic = !training)
    (nn$Dense(self$classes))(x)
  }
)

new_model <- function() {
  inputs <- list(
    numbers = keras_input(2 * length(numeric_columns), name = "numbers"),
    month = keras_input(1, dtype = "int32", name = "month")
  )
  module <- tabular_net(months = nlevels(days$Month), classes = nlevels(days$Level))
  output <- inputs |>
    layer_flax_module_wrapper(module, name = "tabular_net") |>
    layer_activation_softmax()
  model <- keras_model(inputs, output)
  model |> compile(
    optimizer = optimizer_adam(0.01),
    loss = "sparse_categorical_crossentropy",
    metrics = "accuracy"
  )
  model
}

# Train on four folds, predict the fifth ---------------------------------------------------------

fold <- sample(rep_len(1:5, nrow(days)))
days$Flax <- days$Glm <- factor(NA, levels(days$Level))
days$Confidence <- NA_real_
for (k in 1:5) {
  train <- days[fold != k, ]
  test <- days[fold == k, ]
  encode <- encoder(train)

  model <- new_model()
  model |> fit(
    encode(train), as.integer(train$Level) - 1L,
    batch_size = 16, epochs = 40, verbose = 0
  )
  # `predict()` returns one column for each class, in the order of the factor's levels.
  probabilities <- predict(model, encode(test), verbose = 0)
  days$Flax[fold == k] <- levels(days$Level)[max.col(probabilities)]
  days$Confidence[fold == k] <- apply(probabilities, 1, max)

  # `glm()` drops rows with gaps. It gets the mean for them, too.
  train$Solar.R[is.na(train$Solar.R)] <- mean(train$Solar.R, na.rm = TRUE)
  test$Solar.R[is.na(test$Solar.R)] <- mean(train$Solar.R)
  logistic <- glm(Level ~ Solar.R + Wind + Temp + Month, binomial, train)
  days$Glm[fold == k] <- levels(days$Level)[1 + (predict(logistic, test) > 0)]
}

# The results ------------------------------------------------------------------------------------

cat("\nThe least certain predictions:\n")
shown <- c("Month", "Day", numeric_columns, "Level", "Flax", "Confidence")
print(head(days[order(days$Confidence), shown], 5), digits = 2, row.names = FALSE)
cat("\n")
print(table(actual = days$Level, predicted = days$Flax))

accuracy <- mean(days$Flax == days$Level)
majority <- max(prop.table(table(days$Level)))

plot_file <- file.path(normalizePath(folder), "tabular.png")
colors <- c(little = "#0072B2", much = "#D55E00")
png(plot_file, width = 900, height = 600, res = 110)
par(mar = c(4.5, 4.5, 3, 1), las = 1)
wrong <- days$Flax != days$Level
plot(
  Wind ~ Temp, days,
  col = colors[as.character(days$Level)], pch = ifelse(wrong, 4, 19), bty = "n", font.main = 1,
  xlab = "temperature (F)", ylab = "wind (mph)", main = "Days with little and with much ozone"
)
legend(
  "topright", c("little", "much", "predicted wrongly"),
  col = c(colors, "black"), pch = c(19, 19, 4), bty = "n"
)
invisible(dev.off())

cat(sprintf(
  "\nAccuracy on %d days: %.1f %% (glm: %.1f %%, always the larger class: %.1f %%)\n",
  nrow(days), 100 * accuracy, 100 * mean(days$Glm == days$Level), 100 * majority
))
cat("Plot:", plot_file, "\n")
stopifnot(accuracy > majority + 0.2)
