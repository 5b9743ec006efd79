// Fleet simulation: the production relay, queue, retry rules, link and session states, routing
// policy and scheduler under a random load and random faults from one seed. Only the wire, the
// clock and the device are doubles. Every stream is compared with what an undisturbed run gives.
#pragma once

#include <cstdint>
#include <string>

namespace lckv::fleet_simulation {

// What is broken on purpose between the parts, to see that the checks find it.
enum class Defect : uint8_t {
  kNone,
  kResumeEarly,         // a resumed stream is fed back one token less than was delivered
  kResumeLate,          // ... and one it has not been given
  kStaleDelivery,       // what a left replica still says is taken for the newest's
  kLostCancel,          // cancels never reach the leader
  kLostContinue,        // a paused sequence is never unpaused
  kForgottenOrphan,     // one of the sequences of a lost session is not told
  kDoubleCredit,        // the router believes in twice the room there is
  kCrossedFingerprint,  // a stream goes on at whatever replica is ready
  kOtherSeed,           // a resumed stream draws from another seed
  kUnwatchedSilence,    // a silent session is never given up
  kDeafPredecessor,     // what a session says that another one follows is not heard
  kForgottenDuplicate,  // streams of a second link to one replica are not told that it is closed
};

struct Outcome {
  std::string error;  // what went wrong first; empty: all was right
  int num_streams = 0;
  int num_resumes = 0;
  int num_crashes = 0;
  int num_followed = 0;    // sessions that another one followed
  int num_duplicates = 0;  // links that were closed because another one led to their replica
};

// Runs one seed to its end.
Outcome simulate(uint64_t seed, Defect defect = Defect::kNone);

}  // namespace lckv::fleet_simulation
