// SPDX-License-Identifier: Apache-2.0
#include "libmamba/run_checkpoint.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <thread>

#include "libmamba/core/file.h"
#include "libmamba/core/random.h"
#include "libmamba/manifest.h"
#include "tests/libmamba/folder_fixture.h"

namespace gmamba {
namespace {

namespace fs = std::filesystem;
using test::expect_error;
using test::MemoryLog;
using test::same_values;
using test::slurp;
using test::spit;
using test::tiny_model;

constexpr Device kCpu{};

/// What a run has at one step; everything follows from the step, so that any checkpoint can be told
/// right from wrong.
struct RunState {
  Model model;
  ParameterBuffer exp_avg;
  ParameterBuffer exp_avg_sq;
  Json trainer;
};

RunState state_at(int64_t step) {
  const auto seed = static_cast<uint64_t>(step);
  Model model = tiny_model(seed);
  ParameterBuffer exp_avg = tiny_model(seed + 1'000'000).parameters().clone();
  ParameterBuffer exp_avg_sq = tiny_model(seed + 2'000'000).parameters().clone();
  Json trainer = {{"step", step},
                  {"cursor", {{"epoch", 3}, {"offset", (int64_t{1} << 62) + step}}},
                  {"loss", 1.0 / static_cast<double>(step + 3)},
                  {"note", "\xce\xbb \"quoted\"\n"}};
  return {std::move(model), std::move(exp_avg), std::move(exp_avg_sq), std::move(trainer)};
}

void save(const fs::path& run, int64_t step, int keep = 2) {
  const RunState state = state_at(step);
  save_checkpoint(run, step, state.model, state.exp_avg, state.exp_avg_sq, state.trainer, keep);
}

void expect_is(const Checkpoint& checkpoint, int64_t step) {
  const RunState state = state_at(step);
  EXPECT_EQ(checkpoint.step, step);
  EXPECT_TRUE(same_values(checkpoint.model.parameters(), state.model.parameters()));
  EXPECT_TRUE(same_values(checkpoint.exp_avg, state.exp_avg));
  EXPECT_TRUE(same_values(checkpoint.exp_avg_sq, state.exp_avg_sq));
  EXPECT_EQ(checkpoint.trainer_state, state.trainer);
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::path& path : list_folder(folder)) names.push_back(path.filename().string());
  return names;
}

class RunCheckpointTest : public test::FolderTest {
 protected:
  fs::path step_folder(int64_t step) const {
    return folder_ / "checkpoints" / concat("step-0000", step);
  }
};

TEST_F(RunCheckpointTest, ComesBackWithTheSameBits) {
  EXPECT_FALSE(load_newest_checkpoint(folder_, kCpu, nullptr).has_value());
  EXPECT_TRUE(list_checkpoints(folder_ / "absent").empty());
  save(folder_ / "a" / "run", 1000);
  const auto loaded = load_newest_checkpoint(folder_ / "a" / "run", kCpu, nullptr);
  ASSERT_TRUE(loaded.has_value());
  expect_is(*loaded, 1000);
  EXPECT_EQ(loaded->folder, folder_ / "a" / "run" / "checkpoints" / "step-00001000");
  const std::vector<std::string> expected = {
      "config.json",       "generation_config.json", "manifest.json",
      "model.safetensors", "optimizer.safetensors",  "special_tokens_map.json",
      "tokenizer.json",    "tokenizer_config.json",  "trainer_state.json"};
  EXPECT_EQ(names_in(loaded->folder), expected);
  verify_checkpoint(loaded->folder);
  verify_checkpoint(loaded->folder / "");
}

TEST_F(RunCheckpointTest, CarriedTensorsComeBackWithTheSameBits) {
  const RunState state = state_at(7);
  Tensor conv(kCpu, DType::kF32, {2, 3, 1, 5});
  Tensor ssm(kCpu, DType::kF32, {4});
  for (size_t i = 0; i < 30; ++i) conv.host<float>()[i] = 1.0F / static_cast<float>(i + 1);
  ssm.host<float>()[1] = -1e-41F;  // denormal
  const auto store = [&] {
    save_checkpoint(folder_, 7, state.model, state.exp_avg, state.exp_avg_sq, state.trainer, 2,
                    {{"conv.0", conv}, {"ssm.0", ssm}});
  };
  store();
  const auto loaded = load_newest_checkpoint(folder_, kCpu, nullptr);
  ASSERT_TRUE(loaded.has_value());
  ASSERT_EQ(loaded->carried.size(), 2U);
  const Tensor& back = loaded->carried.at("conv.0");
  EXPECT_EQ(back.shape(), conv.shape());
  EXPECT_TRUE(std::ranges::equal(back.host<const float>(), conv.host<const float>()));
  EXPECT_TRUE(
      std::ranges::equal(loaded->carried.at("ssm.0").host<const float>(), ssm.host<const float>()));
  // it is part of what the manifest vouches for
  std::string bytes = slurp(loaded->folder / "carried.safetensors");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  spit(loaded->folder / "carried.safetensors", bytes);
  expect_error(ErrorKind::kInput, {"carried.safetensors"},
               [&] { verify_checkpoint(loaded->folder); });
  ssm.host<float>()[0] = std::numeric_limits<float>::infinity();
  expect_error(ErrorKind::kInput, {"ssm.0", "not finite"}, store);
  save(folder_, 8);
  EXPECT_TRUE(load_newest_checkpoint(folder_, kCpu, nullptr)->carried.empty());
}

TEST_F(RunCheckpointTest, KeepsTheLastOnes) {
  for (int64_t step = 1000; step <= 6000; step += 1000) save(folder_, step, 3);
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<int64_t>{4000, 5000, 6000}));
  save(folder_, 7000, 0);  // two are always kept
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<int64_t>{6000, 7000}));
  EXPECT_EQ(names_in(folder_ / "checkpoints").size(), 2u);
  // a run that went back does not remove what it will write again
  save(folder_, 6500, 2);
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<int64_t>{6000, 6500, 7000}));
  save(folder_, 7000, 2);
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<int64_t>{6500, 7000}));
}

TEST_F(RunCheckpointTest, StepsOfAnyLengthAreOrdered) {
  save(folder_, 0);
  save(folder_, 999'999'999);
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<int64_t>{0, 999'999'999}));
  expect_is(*load_newest_checkpoint(folder_, kCpu, nullptr), 999'999'999);
  EXPECT_EQ(names_in(folder_ / "checkpoints"),
            (std::vector<std::string>{"step-00000000", "step-999999999"}));
}

TEST_F(RunCheckpointTest, OtherNamesAreNoCheckpoints) {
  save(folder_, 1000);
  for (const char* name :
       {"step-00002000.tmp.123", "step-2000", "step-", "step-000x2000", "step-00002000.old.tmp.7",
        "step--0002000", "other", "step-000002000", "step-99999999999999999999"}) {
    fs::create_directory(folder_ / "checkpoints" / name);
  }
  spit(folder_ / "checkpoints" / "step-00003000", "a file");
  EXPECT_EQ(list_checkpoints(folder_), (std::vector<int64_t>{1000}));
  expect_is(*load_newest_checkpoint(folder_, kCpu, nullptr), 1000);
  save(folder_, 1001);
  for (const std::string& name : names_in(folder_ / "checkpoints")) {
    EXPECT_EQ(name.find(".tmp."), std::string::npos) << name;
  }
}

TEST_F(RunCheckpointTest, NothingThatIsNotFiniteIsSaved) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const auto refused = [&](const std::vector<std::string>& parts, RunState state) {
    expect_error(ErrorKind::kInput, parts, [&] {
      save_checkpoint(folder_, 5, state.model, state.exp_avg, state.exp_avg_sq, state.trainer, 2);
    });
    EXPECT_TRUE(list_checkpoints(folder_).empty());
  };
  RunState state = state_at(5);
  state.model.parameters().view("backbone.norm_f.weight").flat<float>()[1] = nan;
  refused({"model", "backbone.norm_f.weight", "element 1"}, std::move(state));
  state = state_at(5);
  state.exp_avg.view("backbone.layers.0.mixer.D").flat<float>()[2] = INFINITY;
  refused({"exp_avg", "backbone.layers.0.mixer.D"}, std::move(state));
  state = state_at(5);
  state.exp_avg_sq.view("backbone.layers.1.mixer.D").flat<float>()[2] = -INFINITY;
  refused({"exp_avg_sq", "backbone.layers.1.mixer.D"}, std::move(state));
  state = state_at(5);
  state.trainer["cursor"]["loss"] = {1.5, nan};
  refused({"cursor.loss"}, std::move(state));
  state = state_at(5);
  state.trainer["path"] = "\xff.fa";
  refused({"path", "UTF-8"}, std::move(state));
  EXPECT_FALSE(fs::exists(folder_ / "checkpoints"));
}

/// One way to damage a file; returns false where it would change nothing.
struct Damage {
  const char* name;
  std::function<bool(const fs::path&)> apply;
};

std::vector<Damage> damages() {
  const auto edit = [](auto change) {
    return [change](const fs::path& path) {
      const std::string before = slurp(path);
      std::string after = before;
      change(after);
      spit(path, after);
      return after != before;
    };
  };
  std::vector<Damage> out = {
      {"gone", [](const fs::path& path) { return fs::remove(path); }},
      {"a folder instead",
       [](const fs::path& path) { return fs::remove(path) && fs::create_directory(path); }},
      {"empty", edit([](std::string& s) { s.clear(); })},
      {"halved", edit([](std::string& s) { s.resize(s.size() / 2); })},
      {"one byte less", edit([](std::string& s) { s.pop_back(); })},
      {"one byte more", edit([](std::string& s) { s += '\0'; })},
      {"one blank more", edit([](std::string& s) { s += ' '; })},
      {"one newline more", edit([](std::string& s) { s += '\n'; })},
      {"zero tail", edit([](std::string& s) {
         s.replace(s.size() - s.size() / 4, s.size() / 4, s.size() / 4, '\0');
       })},
      {"zeroed", edit([](std::string& s) { s.assign(s.size(), '\0'); })},
  };
  for (int i = 0; i < 5; ++i) {
    out.push_back({"bit flip", edit([i](std::string& s) {
                     Random random(static_cast<uint64_t>(i), RandomUse::kTest, s.size());
                     const size_t bit = random.below(s.size() * 8);
                     s[bit / 8] = static_cast<char>(s[bit / 8] ^ (1 << bit % 8));
                   })});
  }
  return out;
}

TEST_F(RunCheckpointTest, DamageIsNamedAndTheOlderOneUsed) {
  save(folder_, 1000);
  save(folder_, 2000);
  const fs::path newest = step_folder(2000);
  const fs::path good = folder_ / "good";
  fs::copy(newest, good, fs::copy_options::recursive);
  int cases = 0;
  for (const std::string& file : names_in(newest)) {
    for (const Damage& damage : damages()) {
      fs::remove_all(newest);
      fs::copy(good, newest, fs::copy_options::recursive);
      if (!damage.apply(newest / file)) continue;
      ++cases;
      const std::string label = concat(file, ": ", damage.name);
      expect_error(
          ErrorKind::kInput, {file}, [&] { verify_checkpoint(newest); }, label);
      MemoryLog log;
      const auto loaded = load_newest_checkpoint(folder_, kCpu, &log);
      ASSERT_TRUE(loaded.has_value()) << label;
      EXPECT_EQ(loaded->step, 1000) << label;
      EXPECT_EQ(log.count(LogLevel::kWarning, file), 1) << label << "\n" << log.text();
      EXPECT_EQ(log.count(LogLevel::kWarning, "older"), 1) << label << "\n" << log.text();
    }
  }
  EXPECT_GE(cases, 9 * 14);
}

TEST_F(RunCheckpointTest, EveryBitOfTheManifestCounts) {
  save(folder_, 1000);
  const std::string text = slurp(step_folder(1000) / "manifest.json");
  check_manifest_text(text, 1000, "manifest.json");
  check_manifest_text(text, -1, "manifest.json");
  expect_error(ErrorKind::kInput, {"step 1000", "2000"},
               [&] { check_manifest_text(text, 2000, "manifest.json"); });
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_THROW(check_manifest_text(flipped, 1000, "manifest.json"), Error) << bit;
  }
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_THROW(check_manifest_text(std::string_view(text).substr(0, size), 1000, "m"), Error);
  }
}

TEST_F(RunCheckpointTest, SwappedFilesAreRefused) {
  save(folder_, 1000);
  save(folder_, 2000);
  const auto swap_files = [](const fs::path& a, const fs::path& b) {
    const std::string first = slurp(a);
    spit(a, slurp(b));
    spit(b, first);
  };
  // within one checkpoint
  const std::vector<std::string> names = names_in(step_folder(2000));
  for (size_t i = 0; i + 1 < names.size(); ++i) {
    swap_files(step_folder(2000) / names[i], step_folder(2000) / names[i + 1]);
    EXPECT_THROW(verify_checkpoint(step_folder(2000)), Error) << names[i];
    EXPECT_EQ(load_newest_checkpoint(folder_, kCpu, nullptr)->step, 1000);
    swap_files(step_folder(2000) / names[i], step_folder(2000) / names[i + 1]);
  }
  verify_checkpoint(step_folder(2000));
  // between two checkpoints: same sizes, other step
  for (const char* name : {"optimizer.safetensors", "model.safetensors", "trainer_state.json"}) {
    swap_files(step_folder(1000) / name, step_folder(2000) / name);
    expect_error(
        ErrorKind::kInput, {name}, [&] { verify_checkpoint(step_folder(2000)); }, name);
    swap_files(step_folder(1000) / name, step_folder(2000) / name);
  }
  // a whole checkpoint under another's name
  fs::rename(step_folder(2000), step_folder(3000));
  expect_error(ErrorKind::kInput, {"manifest.json", "step 2000", "3000"},
               [&] { verify_checkpoint(step_folder(3000)); });
  fs::rename(step_folder(3000), folder_ / "best");
  verify_checkpoint(folder_ / "best");
}

TEST_F(RunCheckpointTest, NoneWholeIsAnErrorThatNamesEach) {
  save(folder_, 1000);
  save(folder_, 2000);
  fs::remove(step_folder(1000) / "optimizer.safetensors");
  spit(step_folder(2000) / "model.safetensors", "");
  expect_error(ErrorKind::kInput,
               {"none of 2", "put back a copy", "step-00001000/optimizer.safetensors",
                "step-00002000/model.safetensors"},
               [&] { load_newest_checkpoint(folder_, kCpu, nullptr); });
  // the run goes on over the damaged ones and ends with whole ones
  save(folder_, 2000);
  expect_is(*load_newest_checkpoint(folder_, kCpu, nullptr), 2000);
}

TEST_F(RunCheckpointTest, TheStateIsReadAloneFromTheNewestInWhichItIsWhole) {
  EXPECT_FALSE(newest_trainer_state(folder_).has_value());
  save(folder_, 1000);
  const std::string older = slurp(step_folder(1000) / "trainer_state.json");
  save(folder_, 2000);
  const fs::path newest = step_folder(2000) / "trainer_state.json";
  const std::string text = slurp(newest);
  spit(step_folder(2000) / "model.safetensors", "");  // of no concern here
  EXPECT_EQ(newest_trainer_state(folder_), parse_json(text, "state"));
  for (size_t i = 0; i < text.size(); i += 7) {
    std::string flipped = text;
    flipped[i] = static_cast<char>(flipped[i] ^ 1);
    spit(newest, flipped);
    EXPECT_EQ(newest_trainer_state(folder_), parse_json(older, "state")) << i;
  }
  fs::remove(newest);
  EXPECT_EQ(newest_trainer_state(folder_), parse_json(older, "state"));
  fs::remove(step_folder(1000) / "manifest.json");
  EXPECT_FALSE(newest_trainer_state(folder_).has_value());
}

TEST_F(RunCheckpointTest, FailedSaveLeavesTheOldOnes) {
  save(folder_, 1000);
  const auto before = names_in(folder_ / "checkpoints");
  // a file where the new folder should appear
  spit(step_folder(2000), "in the way");
  expect_error(ErrorKind::kIo, {"step-00002000"}, [&] { save(folder_, 2000); });
  fs::remove(step_folder(2000));
  EXPECT_EQ(names_in(folder_ / "checkpoints"), before);
  expect_is(*load_newest_checkpoint(folder_, kCpu, nullptr), 1000);
  spit(folder_ / "file", "x");
  expect_error(ErrorKind::kIo, {"file"}, [&] { save(folder_ / "file", 1); });
}

/// Saves with files limited to `limit` bytes, as on a full disk; 0 when that gave an io error.
int save_limited(const fs::path& run, rlim_t limit) {
  ::signal(SIGXFSZ, SIG_IGN);
  const rlimit files{limit, limit};
  if (::setrlimit(RLIMIT_FSIZE, &files) != 0) return 3;
  try {
    save(run, 2000);
  } catch (const Error& error) {
    return error.kind() == ErrorKind::kIo ? 0 : 1;
  }
  return 2;
}

TEST_F(RunCheckpointTest, AFullDiskLeavesTheOldOnes) {
  save(folder_, 1000);
  save(folder_, 1500);
  const auto largest = fs::file_size(step_folder(1500) / "optimizer.safetensors");
  for (rlim_t k = 0; k < 16; ++k) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) ::_exit(save_limited(folder_, largest * k / 16));
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << k;
    EXPECT_EQ(WEXITSTATUS(status), 0) << k;
    EXPECT_EQ(names_in(folder_ / "checkpoints"),
              (std::vector<std::string>{"step-00001000", "step-00001500"}))
        << k;
    expect_is(*load_newest_checkpoint(folder_, kCpu, nullptr), 1500);
  }
}

/// Child of the kill test: saves one checkpoint after the other until it is killed, telling each
/// that is done through the pipe.
[[noreturn]] void save_until_killed(const fs::path& run, int64_t step, int pipe) {
  try {
    const RunLock lock(run);
    for (;; ++step) {
      save(run, step);
      if (::write(pipe, &step, sizeof(step)) != sizeof(step)) break;
    }
  } catch (...) {
  }
  ::_exit(1);
}

TEST_F(RunCheckpointTest, SurvivesKillAtRandomMoments) {
  Random random(20, RandomUse::kTest);
  int64_t last_step = 0;
  int most_leftovers = 0;
  for (int round = 0; round < 25; ++round) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_until_killed(folder_, last_step + 1, ends[1]);
    ::close(ends[1]);
    // the first save always ends, the kill falls anywhere within the next few
    int64_t done = 0;
    ASSERT_EQ(::read(ends[0], &done, sizeof(done)), static_cast<ssize_t>(sizeof(done)));
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(150'000)));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself in round " << round;
    while (::read(ends[0], &done, sizeof(done)) == sizeof(done)) {
    }
    ::close(ends[0]);

    MemoryLog log;
    const auto loaded = load_newest_checkpoint(folder_, kCpu, &log);
    ASSERT_TRUE(loaded.has_value()) << "round " << round;
    EXPECT_EQ(log.text(), "") << "round " << round;
    EXPECT_GE(loaded->step, done) << "a checkpoint that was done is gone, round " << round;
    EXPECT_LE(loaded->step, done + 1);
    expect_is(*loaded, loaded->step);
    EXPECT_GE(list_checkpoints(folder_).size(), loaded->step > 1 ? 2u : 1u);
    int leftovers = 0;
    for (const std::string& name : names_in(folder_ / "checkpoints")) {
      leftovers += name.find(".tmp.") != std::string::npos ? 1 : 0;
    }
    most_leftovers = std::max(most_leftovers, leftovers);
    last_step = loaded->step;
  }
  EXPECT_LE(most_leftovers, 2);  // one being written, one being pruned
  save(folder_, last_step + 1);
  EXPECT_EQ(names_in(folder_ / "checkpoints").size(), 2u);
}

TEST_F(RunCheckpointTest, OneProcessPerRunFolder) {
  const fs::path run = folder_ / "new" / "run";
  {
    const RunLock lock(run);
    expect_error(ErrorKind::kUsage, {run.string(), concat("process ", ::getpid())},
                 [&] { const RunLock second(run); });
  }
  const RunLock again(run);
  const RunLock other(folder_ / "other");
}

TEST_F(RunCheckpointTest, LockGoesWithItsProcess) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const RunLock lock(folder_);
    const char ready = 'r';
    if (::write(ends[1], &ready, 1) == 1) ::pause();
    ::_exit(0);
  }
  char ready = 0;
  ASSERT_EQ(::read(ends[0], &ready, 1), 1);
  expect_error(ErrorKind::kUsage, {concat("process ", child)},
               [&] { const RunLock second(folder_); });
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const RunLock lock(folder_);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_F(RunCheckpointTest, FiftyRacesForOneFolderHaveOneWinner) {
  for (int race = 0; race < 50; ++race) {
    int start[2];
    int won[2];
    ASSERT_EQ(::pipe(start), 0);
    ASSERT_EQ(::pipe(won), 0);
    std::vector<pid_t> children;
    for (int i = 0; i < 3; ++i) {
      const pid_t child = ::fork();
      ASSERT_GE(child, 0);
      if (child == 0) {
        ::close(start[1]);
        char go = 0;
        if (::read(start[0], &go, 1) < 0) ::_exit(2);  // ends when the parent closes its side
        char result = 'l';
        try {
          const RunLock lock(folder_);
          result = 'w';
          if (::write(won[1], &result, 1) != 1) ::_exit(2);
          // hold it until all three have tried
          ::pause();
        } catch (const Error& error) {
          result = error.kind() == ErrorKind::kUsage ? 'l' : 'e';
        }
        ::_exit(::write(won[1], &result, 1) == 1 ? 0 : 2);
      }
      children.push_back(child);
    }
    ::close(start[0]);
    ::close(start[1]);
    std::string results;
    for (int i = 0; i < 3; ++i) {
      char result = 0;
      ASSERT_EQ(::read(won[0], &result, 1), 1);
      results += result;
    }
    EXPECT_EQ(std::count(results.begin(), results.end(), 'w'), 1) << results;
    EXPECT_EQ(std::count(results.begin(), results.end(), 'l'), 2) << results;
    for (const pid_t child : children) {
      ::kill(child, SIGKILL);
      ::waitpid(child, nullptr, 0);
    }
    ::close(won[0]);
    ::close(won[1]);
  }
}

}  // namespace
}  // namespace gmamba
