# The NNX column of the conformance table (helper-conformance.R): modules as an R user would write
# them, and how plain Flax runs them.

flax_nnx <- function() reticulate::import("flax.nnx")

nnx_rngs <- function() flax_nnx()$Rngs(7L)

# Like `new_case()`, with these additional arguments:
# - `sows`: the variable types that the module sows.
# - `sets_mode`: whether plain Flax sets the mode with `train()` and `eval()`.
new_nnx_case <- function(
  module,
  inputs,
  arguments = \(inputs, training) list(inputs),
  method = NULL,
  sows = list(),
  sown = character(),
  sets_mode = TRUE
) {
  streams <- list(training = character(), inference = character())
  structure(c(as.list(environment()), list(layer = list())), class = "nnx_case")
}

nnx_conformance_table <- function() {
  list(
    "dense only" = function() {
      new_nnx_case(flax_nnx()$Linear(2L, 3L, rngs = nnx_rngs()), floats(4, 2))
    },

    "setup and a method in R" = function() {
      nnx <- flax_nnx()
      SetUp(nnx$Module) %py_class% {
        initialize <- function(self, rngs, units = 3L) {
          self$hidden <- nnx$Linear(2L, units, rngs = rngs)
          self$out <- nnx$Linear(units, 3L, rngs = rngs)
        }
        `__call__` <- function(self, inputs) self$out(nnx$relu(self$hidden(inputs)))
      }
      new_nnx_case(SetUp(nnx_rngs()), floats(4, 2))
    },

    "dropout" = function() {
      nnx <- flax_nnx()
      Dropout(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
          self$dropout <- nnx$Dropout(0.5, rngs = rngs)
        }
        `__call__` <- function(self, inputs) self$dropout(self$dense(inputs))
      }
      new_nnx_case(Dropout(nnx_rngs()), floats(4, 2))
    },

    "batch statistics" = function() {
      nnx <- flax_nnx()
      Normalised(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
          self$norm <- nnx$BatchNorm(3L, momentum = 0.9, rngs = rngs)
        }
        `__call__` <- function(self, inputs, training = FALSE) {
          self$norm(self$dense(inputs), use_running_average = !training)
        }
      }
      new_nnx_case(Normalised(nnx_rngs()), floats(4, 2), with_mode("training"), sets_mode = FALSE)
    },

    "sown losses" = function() {
      nnx <- flax_nnx()
      Penalised(nnx$Module) %py_class% {
        initialize <- function(self, rngs) self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
        `__call__` <- function(self, inputs) {
          x <- self$dense(inputs)
          self$sow("losses", "activity", 0.1 * op_sum(x^2))
          self$sow("losses", "size", op_mean(op_abs(x)))
          x
        }
      }
      losses <- nnx$variable_type_from_name("losses", allow_register = TRUE)
      new_nnx_case(Penalised(nnx_rngs()), floats(4, 2), sows = list(losses), sown = "losses")
    },

    "sown intermediates and metrics" = function() {
      nnx <- flax_nnx()
      Sower(nnx$Module) %py_class% {
        initialize <- function(self, rngs) self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
        `__call__` <- function(self, inputs) {
          x <- self$dense(inputs)
          self$sow(nnx$Intermediate, "hidden", x)
          self$sow(nnx$Intermediate, "hidden", 2 * x)
          x
        }
      }
      new_nnx_case(
        Sower(nnx_rngs()),
        floats(4, 2),
        sows = list(nnx$Intermediate),
        sown = "intermediates"
      )
    },

    "integer tokens" = function() {
      nnx <- flax_nnx()
      Words(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$embed <- nnx$Embed(5L, 3L, rngs = rngs)
          self$dense <- nnx$Linear(3L, 3L, rngs = rngs)
        }
        `__call__` <- function(self, tokens) self$dense(self$embed(tokens))
      }
      new_nnx_case(Words(nnx_rngs()), integers(4, 6))
    },

    "deterministic instead of training" = function() {
      nnx <- flax_nnx()
      Deterministic(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
          self$dropout <- nnx$Dropout(0.5, rngs = rngs)
        }
        `__call__` <- function(self, inputs, deterministic) {
          self$dropout(self$dense(inputs), deterministic = deterministic)
        }
      }
      new_nnx_case(
        Deterministic(nnx_rngs()),
        floats(4, 2),
        with_mode("deterministic", FALSE),
        sets_mode = FALSE
      )
    },

    "a named list spread over arguments" = function() {
      nnx <- flax_nnx()
      Named(nnx$Module) %py_class% {
        initialize <- function(self, rngs) self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
        `__call__` <- function(self, left, right) self$dense(left) - 2 * self$dense(right)
      }
      new_nnx_case(Named(nnx_rngs()), list(right = 2 * floats(4, 2), left = floats(4, 2)), spread)
    },

    "a list for one argument" = function() {
      nnx <- flax_nnx()
      Pair(nnx$Module) %py_class% {
        initialize <- function(self, rngs) self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
        `__call__` <- function(self, inputs) {
          c(left, right) %<-% inputs
          self$dense(left) - right
        }
      }
      new_nnx_case(Pair(nnx_rngs()), list(floats(4, 2), floats(4, 3)))
    },

    "a method by name" = function() new_nnx_case(nnx_coder(), floats(4, 2), method = "encode"),

    "an R function as method" = function() {
      new_nnx_case(nnx_coder(), floats(4, 2), method = \(module, inputs) 2 * module$encode(inputs))
    },

    "a cache that counts calls" = function() {
      nnx <- flax_nnx()
      jnp <- reticulate::import("jax.numpy")
      Counter(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
          self$n <- nnx$Cache(jnp$zeros(reticulate::tuple()))
        }
        `__call__` <- function(self, inputs) {
          self$n$set_value(self$n$get_value() + 1)
          self$dense(inputs) + self$n$get_value()
        }
      }
      new_nnx_case(Counter(nnx_rngs()), floats(4, 2))
    },

    "a named list of outputs" = function() {
      nnx <- flax_nnx()
      Outputs(nnx$Module) %py_class% {
        initialize <- function(self, rngs) self$dense <- nnx$Linear(2L, 3L, rngs = rngs)
        `__call__` <- function(self, inputs) {
          x <- self$dense(inputs)
          list(b = x, a = list(2 * x, 3 * x))
        }
      }
      new_nnx_case(Outputs(nnx_rngs()), floats(4, 2))
    },

    "tied embeddings" = function() {
      nnx <- flax_nnx()
      Tied(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$embed <- nnx$Embed(5L, 3L, rngs = rngs)
          self$again <- self$embed
        }
        `__call__` <- function(self, tokens) self$again$attend(self$embed(tokens))
      }
      new_nnx_case(Tied(nnx_rngs()), integers(4, 6))
    },

    "nested modules" = function() {
      nnx <- flax_nnx()
      Inner(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$dense <- nnx$Linear(3L, 3L, rngs = rngs)
          self$dropout <- nnx$Dropout(0.5, rngs = rngs)
        }
        `__call__` <- function(self, inputs) self$dropout(nnx$tanh(self$dense(inputs)))
      }
      Outer(nnx$Module) %py_class% {
        initialize <- function(self, rngs) {
          self$first <- nnx$Linear(2L, 3L, rngs = rngs)
          self$inner <- nnx$List(list(Inner(rngs), Inner(rngs)))
        }
        `__call__` <- function(self, inputs) {
          x <- self$first(inputs)
          for (inner in reticulate::iterate(self$inner)) {
            x <- inner(x)
          }
          x
        }
      }
      new_nnx_case(Outer(nnx_rngs()), floats(4, 2))
    },

    "Sequential with modules and functions" = function() {
      nnx <- flax_nnx()
      rngs <- nnx_rngs()
      new_nnx_case(
        nnx$Sequential(
          nnx$Linear(2L, 4L, rngs = rngs),
          nnx$relu,
          \(x) 2 * x,
          nnx$Linear(4L, 3L, rngs = rngs)
        ),
        floats(4, 2)
      )
    }
  )
}

nnx_coder <- function() {
  nnx <- flax_nnx()
  Coder(nnx$Module) %py_class% {
    initialize <- function(self, rngs) {
      self$encoder <- nnx$Linear(2L, 3L, rngs = rngs)
      self$decoder <- nnx$Linear(3L, 2L, rngs = rngs)
    }
    encode <- function(self, inputs) nnx$tanh(self$encoder(inputs))
    `__call__` <- function(self, inputs) self$decoder(self$encode(inputs))
  }
  Coder(nnx_rngs())
}

# Plain Flax -------------------------------------------------------------------------------------

nnx_collections <- c(
  Param = "params",
  BatchStat = "batch_stats",
  Cache = "cache",
  Intermediate = "intermediates"
)

# The variables of a state or module, each with its collection and path.
nnx_variables <- function(state) {
  nnx <- flax_nnx()
  flat <- nnx$to_flat_state(
    if (inherits(state, "flax.nnx.module.Module")) nnx$state(state) else state
  )
  lapply(reticulate::iterate(flat), \(pair) {
    type <- reticulate::py_str(reticulate::py_get_attr(
      reticulate::import_builtins()$type(pair[[2]]),
      "__name__"
    ))
    path <- as.character(unlist(pair[[1]]))
    collection <- if (type %in% names(nnx_collections)) nnx_collections[[type]] else type
    list(key = pair[[1]], path = c(collection, path), variable = pair[[2]])
  })
}

nnx_tree <- function(variables) {
  tree <- list()
  for (each in variables) {
    tree <- utils::modifyList(tree, nested_value(each$path, each$variable$get_value()))
  }
  tree
}

nested_value <- function(path, value) {
  if (length(path) == 0) value else rlang::set_names(list(nested_value(path[-1], value)), path[[1]])
}

plain_init.nnx_case <- function(case) nnx_tree(nnx_variables(case$module))

plain_apply.nnx_case <- function(case, variables, inputs, mode, keys) {
  nnx <- flax_nnx()
  module <- nnx$clone(case$module)
  for (each in nnx_variables(module)) {
    value <- value_at(variables, each$path)
    key <- do.call(reticulate::tuple, as.list(each$key))
    state <- nnx$from_flat_state(list(reticulate::tuple(key, each$variable$copy(value))))
    nnx$update(module, state)
  }
  if (case$sets_mode) {
    if (mode == "training") module$train() else module$eval()
  }
  arguments <- plain_arguments(case, inputs, mode)
  call <- function(module) {
    method <- case$method %||% "__call__"
    if (is.function(method)) {
      rlang::exec(method, module, !!!arguments)
    } else {
      rlang::exec(module[[method]], !!!arguments)
    }
  }
  if (length(case$sows) == 0) {
    return(list(outputs = call(module), written = nnx_tree(nnx_variables(module))))
  }
  results <- rlang::exec(nnx$capture, reticulate::r_to_py(call, convert = TRUE), !!!case$sows)(
    module
  )
  sown <- do.call(c, lapply(results[-1], nnx_variables))
  list(outputs = results[[1]], written = nnx_tree(c(nnx_variables(module), sown)))
}

value_at <- function(tree, path) {
  for (name in path) {
    tree <- tree[[name]]
  }
  tree
}
