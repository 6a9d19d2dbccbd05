// SPDX-License-Identifier: Apache-2.0
/// Everything a program needs to load a model, read sequences and run it:
///   find_package(gmamba) and target_link_libraries(... gmamba::gmamba), then this header.
/// examples/find_package/ is such a program.
#pragma once

#include "io/sequence_reader.h"
#include "io/tokenizer.h"
#include "kernels/cross_entropy.h"
#include "libmamba/core/context.h"
#include "libmamba/core/error.h"
#include "libmamba/core/tensor.h"
#include "libmamba/core/version.h"
#include "libmamba/core/vocabulary.h"
#include "libmamba/model.h"
#include "libmamba/model_folder.h"
#include "libmamba/state.h"
