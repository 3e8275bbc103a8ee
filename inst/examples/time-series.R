# Forecasts a time series, one month ahead, with a recurrent Flax module, and compares the forecasts
# with two simple ones: the same month a year before, as it is or with the growth of last month.
#
#   Rscript time-series.R [folder for the plot]
#
# The data are `AirPassengers` of R: monthly passengers of airlines, in thousands, 1949 to 1960.

library(kerasflax)
folder <- c(commandArgs(trailingOnly = TRUE), ".")[[1]]
set_random_seed(1)

# The data: windows of a year and the month that follows -----------------------------------------

# The series grows by a rate and not by a number, so the module sees yearly growth: differences of
# logarithms.
growth <- diff(log(AirPassengers), lag = 12)
window_length <- 12L
windows <- embed(growth, window_length + 1)
x <- windows[, (window_length + 1):2] # the oldest month first
y <- windows[, 1]
months <- tail(time(AirPassengers), length(y))
train <- months < 1958

center <- mean(growth[time(growth) < 1958])
spread <- sd(growth[time(growth) < 1958])
as_input <- function(x) array((x - center) / spread, c(dim(x), 1))

# The module -------------------------------------------------------------------------------------

nn <- reticulate::import("flax.linen")

forecaster <- flax_module("Forecaster",
  units = 8L,
  call = function(self, inputs) {
    x <- (nn$RNN(nn$LSTMCell(self$units)))(inputs)
    # The growth of the last month, and what the cells add to it.
    change <- (nn$Dense(1))(op_take(x, -1L, axis = 2))
    op_take(inputs, -1L, axis = 2) + change
  }
)

input <- keras_input(c(window_length, 1))
output <- input |> layer_flax_module_wrapper(forecaster(), name = "forecaster")
model <- keras_model(input, output)
model |> compile(optimizer = optimizer_adam(0.003), loss = "mse")
model |> fit(
  as_input(x[train, ]), (y[train] - center) / spread,
  batch_size = 16, epochs = 40, verbose = 0
)

# The results ------------------------------------------------------------------------------------

actual <- tail(AirPassengers, sum(!train))
year_before <- head(tail(AirPassengers, sum(!train) + 12), sum(!train))
forecast_growth <- predict(model, as_input(x[!train, ]), verbose = 0)[, 1] * spread + center
forecast <- as.numeric(year_before) * exp(forecast_growth)

print(
  data.frame(
    month = format(as.Date(sprintf("%d-%02d-01", 1958 + (0:5) %/% 12, 1:6)), "%Y-%m"),
    passengers = head(as.numeric(actual)),
    forecast = round(head(forecast)),
    `year before` = head(as.numeric(year_before)),
    check.names = FALSE
  ),
  row.names = FALSE
)

plot_file <- file.path(normalizePath(folder), "time-series.png")
colors <- c(passengers = "black", forecast = "#D55E00", `year before` = "#0072B2")
png(plot_file, width = 1000, height = 560, res = 110)
par(mar = c(4.5, 4.5, 3, 1), las = 1)
plot(
  window(AirPassengers, 1956), lwd = 2, bty = "n", font.main = 1, ylim = c(250, 650),
  xlab = "year", ylab = "thousands of passengers", main = "Forecasts of the next month"
)
lines(months[!train], year_before, col = colors[["year before"]], lty = 2)
lines(months[!train], forecast, col = colors[["forecast"]], lwd = 2)
legend("topleft", names(colors), col = colors, lwd = 2, lty = c(1, 1, 2), bty = "n")
invisible(dev.off())

last_growth <- x[!train, window_length]
error <- mean(abs(forecast - actual))
naive_error <- mean(abs(year_before - actual))
growing_error <- mean(abs(year_before * exp(last_growth) - actual))
cat(sprintf(
  paste(
    "\nMean error in %d months: %.1f thousand passengers",
    "(same month a year before: %.1f, with the growth of last month: %.1f)\n"
  ),
  sum(!train), error, naive_error, growing_error
))
cat("Plot:", plot_file, "\n")
stopifnot(error < growing_error)
