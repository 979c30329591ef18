// Work in stages, each of one piece at least, which a team of threads takes one by one; a stage begins when all pieces of
// the one before it are done. No thread is waited for that holds no piece: one whose core another program has, or that is
// slow to wake, costs its own share of the work alone. Waiting for all threads instead costs each of a step's hundred
// stages the slowest one's time.
#pragma once
#include <vector>
#include "linear.h"
#include "team.h"

class Stages {
    typedef std::atomic<uint32_t> Count;
    size_t stages, line;          // line: counts of one thread, in whole cache lines
    std::vector<Count> taken;     // [thread][stage]: of the pieces that are its own share
    std::vector<Count> finished;  // [stage]
    Signal now;                   // the stage that goes on

    // The next piece: of its own share, then of the others'. Neighbouring pieces go to one thread, as the memory wants it.
    bool take(size_t stage, size_t pieces, int thread, int team, size_t& piece) {
        for (int i = 0; i < team; i++) {
            const int from = (thread + i) % team;
            const Range own = share(pieces, 1, from, team);
            Count& count = taken[from * line + stage];
            if (own.first + count.load(std::memory_order_relaxed) >= own.last) continue;
            piece = own.first + count.fetch_add(1, std::memory_order_relaxed);
            if (piece < own.last) return true;
        }
        return false;
    }

public:
    Stages(size_t stages, int threads) : stages(stages), line((stages + 15) / 16 * 16), taken(threads * line), finished(stages) {}

    // Run by every thread of the team: piece(stage, number) for all of pieces(stage) numbers of each stage in turn; the thread
    // that ends one runs between(next stage) alone, before the next one begins. It returns the stage that is next. A thread
    // that is to do nothing of a stage sees no pieces.
    template <class Pieces, class Piece, class Between>
    void run(int thread, int team, Pieces pieces, Piece piece, Between between) {
        for (size_t stage; (stage = now.value()) < stages; now.wait_for_change(stage)) {
            const size_t all = pieces(stage);
            size_t number;
            uint32_t mine = 0;
            for (; take(stage, all, thread, team, number); mine++) piece(stage, number);
            if (mine && finished[stage].fetch_add(mine) + mine == all) now.change(between(stage + 1));
        }
    }
    template <class Pieces, class Piece> void run(int thread, int team, Pieces pieces, Piece piece) {  // nothing between
        run(thread, team, pieces, piece, [](size_t next) { return next; });
    }
};
