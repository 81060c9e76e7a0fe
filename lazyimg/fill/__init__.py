"""Making ranges of devices present: plan, fetch, decode, verify, write.

A *fill* is one request: write this range of that device to this sink. A *flight* fetches and writes
one run of spans; fills start flights and join those of others, so that each span is fetched once
however many ask.

The life of a fill:
  1. Its range is cut into steps of bounded work, one after the other.
  2. `plan` says which spans a step needs. For those in flight it joins; the others are grouped into
     runs that one ranged request each can fetch. For a reader a small request is widened to the
     spans beside it, because small files are read one by one and each round trip costs.
     What a reader in order will want next is fetched as well (`ahead`), by flights that it does
     not wait for; should it catch up with one, it joins it.
  3. Each run is a flight (`flights`), a task of its own: it waits for its turn (`budget`), fetches,
     decodes and verifies in a worker thread (`decode`), assembles whole blocks (`assembly`), and
     only then writes: nothing unverified is ever handed to a sink.
  4. When its flights have ended, the fill writes what no flight has: zeros, and blocks that the
     spans of two flights share.

Rules:
  - Absence is never doubted: what is asked for is written, whatever was written before. What the
    engine remembers (`recent`, and which spans a sink has) only saves requests.
  - A flight that fails is forgotten and every fill that joined it fails; the next one tries again.
    When only some of its spans are corrupt, it fails only the fills that need those.
    Of several sources of a device, the one added last is asked first, then the others; one that
    gave no answer, or none in time, is asked last from then on. One whose bytes are wrong is told,
    and asked again as long as it has other hosts to get them from.
  - Cancelling a fill leaves the flights it shares alone. A flight that nobody waits for any more is
    cancelled while it waits for its turn or for the blob; once it decodes, it ends by itself.
  - When a reader's deadline passes, the flights it still waits for are forgotten: others may wait
    on, but a new fill starts anew. A reader without a deadline tries again until it can be filled
    or is cancelled (`patience`), whatever fails, as long as its sink is open and has a source.
  - A fill for another sink than the flight's waits for the flight to end, and then makes its own.
  - Readers go before what is fetched ahead of them, and that before prefetching; these two have
    only a share of memory and requests. A reader that joins what waits makes it urgent.
  - Each registry has a share of the budget, and each repository a share of its registry's, so that
    one that hangs does not stop reads of others.
  - Memory in flight is bounded by the budget. A single span may be larger than a request's usual
    size, and than the budget: it then goes alone.

Concurrency: everything runs in one event loop but two things. A worker thread of the engine's
decodes a flight's spans and writes its blocks in one go (`decode`, `assembly`, `Sink.write_now`),
on values that nobody changes: each thread that a byte passes through costs more than decoding it.
And what is in memory is read by whoever asks, in any thread (`local`): nothing waits for the event
loop there. `Engine.close` leaves no task behind.
"""
