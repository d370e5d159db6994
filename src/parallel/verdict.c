#include "parallel/verdict.h"

enum {
    MOST_LINES = 16 /* of ranks that only wait */
};

const char *verdict_standing(enum standing standing)
{
    static const char *const names[] = {"unknown", "stopped", "works", "waits"};
    return names[standing];
}

/* What the rank does, innermost; NULL: nothing is under way. */
static const struct flight_entry *innermost(const struct flight_record *record)
{
    int depth = record->depth < FLIGHT_DEPTH ? record->depth : FLIGHT_DEPTH;
    return depth > 0 ? &record->open[depth - 1] : NULL;
}

static enum standing standing_of(const struct sighting *sighting)
{
    if (!sighting->is_there)
        return STANDING_UNKNOWN;
    if (!sighting->lives)
        return STANDING_STOPPED;
    const struct flight_entry *entry = innermost(&sighting->record);
    return entry && flight_waits(entry) ? STANDING_WAITS : STANDING_WORKS;
}

/* The rank's place for the communicator, NULL: it does not belong to it. */
static const struct flight_group *find_group(const struct flight_record *record, uint64_t id)
{
    for (int64_t i = 0; i < record->group_count && i < FLIGHT_GROUPS; i++)
        if (record->groups[i].id == id)
            return &record->groups[i];
    return NULL;
}

/* How much a rank looks like the one that a group waits for: 0 not at all. A rank that has begun the transfer and works
 * elsewhere may keep it from ending, because transfers move only while it lets them. */
static int suspicion(const struct sighting *sighting, enum standing standing, const struct flight_entry *wait,
                     uint64_t id)
{
    static const int of_standing[] = {3, 4, 2, 1};
    if (standing == STANDING_UNKNOWN)
        return of_standing[standing]; /* perhaps of the group */
    const struct flight_group *group = find_group(&sighting->record, id);
    if (!group)
        return 0;
    bool missing = wait->sequence > 0 && group->begun[wait->count] < wait->sequence;
    return of_standing[standing] + (missing ? 4 : 0);
}

static int member_waited_for(const struct sighting *sightings, int size, const struct finding_of_rank *found, int rank,
                             const struct flight_entry *wait)
{
    const uint64_t id = sightings[rank].record.groups[wait->group].id;
    int best = -1, most = 0;
    for (int i = 0; i < size; i++) {
        int s = i == rank ? 0 : suspicion(&sightings[i], found[i].standing, wait, id);
        if (s > most) {
            most = s;
            best = i;
        }
    }
    return best;
}

static void follow(int size, struct finding_of_rank *found)
{
    for (int rank = 0; rank < size; rank++) {
        int at = rank;
        for (int steps = 0; found[at].waits_for >= 0 && steps < size; steps++) {
            at = found[at].waits_for;
            if (at == rank) {
                found[rank].in_cycle = true;
                break;
            }
            found[at].waiters++;
        }
    }
}

void verdict_find(const struct sighting *sightings, int size, struct finding_of_rank *found)
{
    for (int rank = 0; rank < size; rank++)
        found[rank] = (struct finding_of_rank){.standing = standing_of(&sightings[rank]), .waits_for = -1};
    for (int rank = 0; rank < size; rank++) {
        if (found[rank].standing != STANDING_WAITS)
            continue;
        const struct flight_entry *wait = innermost(&sightings[rank].record);
        if (wait->peer >= 0 && wait->peer < size)
            found[rank].waits_for = wait->peer;
        else if (wait->group >= 0 && wait->group < FLIGHT_GROUPS)
            found[rank].waits_for = member_waited_for(sightings, size, found, rank, wait);
    }
    follow(size, found);
    int causes = 0;
    for (int rank = 0; rank < size; rank++) {
        struct finding_of_rank *f = &found[rank];
        f->is_cause =
            f->in_cycle || f->standing == STANDING_STOPPED || (f->standing != STANDING_WAITS && f->waiters > 0);
        causes += f->is_cause;
    }
    for (int rank = 0; rank < size && causes == 0; rank++) /* no rank waits for another */
        found[rank].is_cause = found[rank].standing != STANDING_WAITS;
}

static void print_rank(const struct sighting *sighting, int rank, struct text *out)
{
    const struct flight_record *record = &sighting->record;
    text_add(out, "rank %d", rank);
    if (sighting->is_there && record->p >= 0)
        text_add(out, " (p%d d%d t%d)", record->p, record->d, record->t);
}

static void print_entry(const struct flight_entry *entry, const struct flight_entry *around, struct text *out)
{
    text_add(out, "%s", flight_name(entry->act));
    if (entry->stage >= 0 && !(around && around->stage == entry->stage))
        text_add(out, " stage %d", entry->stage);
    if (entry->microbatch >= 0 && !(around && around->microbatch == entry->microbatch))
        text_add(out, " microbatch %d", entry->microbatch);
}

/* "step 3 OPTIMIZER_STEP: SUM_GRADIENTS: SUM, for 12.3 s" */
static void print_doing(const struct sighting *sighting, double wall, struct text *out)
{
    const struct flight_record *record = &sighting->record;
    int depth = record->depth < FLIGHT_DEPTH ? record->depth : FLIGHT_DEPTH;
    double since = record->last_end;
    if (record->step >= 0)
        text_add(out, "step %d ", record->step);
    for (int i = 0; i < depth; i++) {
        print_entry(&record->open[i], i > 0 ? &record->open[i - 1] : NULL, out);
        text_add(out, i + 1 < depth ? ": " : "");
        since = record->open[i].begin;
    }
    if (depth == 0) {
        text_add(out, "after ");
        if (record->ended > 0)
            print_entry(&record->ring[(record->ended - 1) % FLIGHT_RING], NULL, out);
        else
            text_add(out, "its start");
    }
    if (since > 0)
        text_add(out, ", for %.1f s", sighting_age(sighting, since, wall));
}

/* Whether the sender of what the rank waits for has sent it, as far back as its record goes. */
static const struct flight_entry *find_sent(const struct sighting *sightings, int size, int rank)
{
    const struct flight_entry *wait = innermost(&sightings[rank].record);
    if (!wait || (wait->act != RECEIVE_ACTIVATION && wait->act != RECEIVE_GRADIENT) || wait->peer >= size)
        return NULL;
    const struct flight_record *sender = &sightings[wait->peer].record;
    int act = wait->act == RECEIVE_ACTIVATION ? SEND_ACTIVATION : SEND_GRADIENT;
    for (uint64_t i = sender->ended; i > 0 && i + FLIGHT_RING > sender->ended; i--) {
        const struct flight_entry *entry = &sender->ring[(i - 1) % FLIGHT_RING];
        if (entry->act == act && entry->peer == rank && entry->microbatch == wait->microbatch &&
            entry->step == wait->step)
            return entry;
    }
    return NULL;
}

/* Those of the cycle that `first` is in, each once. */
static void print_cycle(const struct sighting *sightings, int size, const struct finding_of_rank *found, int first,
                        double wall, struct text *out)
{
    text_add(out, "  deadlock: ");
    int rank = first;
    do {
        print_rank(&sightings[rank], rank, out);
        text_add(out, " waits for ");
        rank = found[rank].waits_for;
    } while (rank != first);
    print_rank(&sightings[first], first, out);
    text_add(out, "\n");
    do {
        const struct flight_entry *sent = find_sent(sightings, size, rank);
        int sender = found[rank].waits_for;
        if (sent) {
            text_add(out, "  a message is lost: rank %d did ", sender);
            print_entry(sent, NULL, out);
            text_add(out, " to rank %d %.1f s ago, and rank %d still waits for it\n", rank,
                     sighting_age(&sightings[sender], sent->begin, wall), rank);
        }
        rank = sender;
    } while (rank != first);
}

static void print_cause(const struct sighting *sighting, int rank, const struct finding_of_rank *found, double wall,
                        struct text *out)
{
    text_add(out, "  ");
    print_rank(sighting, rank, out);
    switch (found->standing) {
    case STANDING_UNKNOWN:
        text_add(out, " has left no record");
        break;
    case STANDING_STOPPED:
        text_add(out, " is stopped or dead, without a sign of life for %.1f s, in ", sighting_silence(sighting, wall));
        print_doing(sighting, wall, out);
        break;
    case STANDING_WORKS:
        text_add(out, " does not come to an end with ");
        print_doing(sighting, wall, out);
        text_add(out, " (if that may take so long, raise &run hang_seconds)");
        break;
    case STANDING_WAITS:
        break;
    }
    text_add(out, found->waiters == 1 ? "; 1 rank waits for it\n" : "; %d ranks wait for it\n", found->waiters);
}

static void print_line(const struct sighting *sighting, int rank, const struct finding_of_rank *found, double wall,
                       struct text *out)
{
    text_add(out, "    ");
    print_rank(sighting, rank, out);
    if (!sighting->is_there) {
        text_add(out, ": no record\n");
        return;
    }
    text_add(out, ", %.*s process %d: ", FLIGHT_HOST, sighting->record.host, sighting->record.process);
    print_doing(sighting, wall, out);
    if (found->waits_for >= 0)
        text_add(out, "; waits for rank %d", found->waits_for);
    else
        text_add(out, "; %s", verdict_standing(found->standing));
    text_add(out, "\n");
}

/* The lowest rank of its cycle. */
static bool is_first_of_cycle(const struct finding_of_rank *found, int rank)
{
    for (int at = found[rank].waits_for; at != rank; at = found[at].waits_for)
        if (at < rank)
            return false;
    return true;
}

void verdict_print(const struct sighting *sightings, int size, const struct finding_of_rank *found, double wall,
                   struct text *out)
{
    int lines = 0;
    for (int rank = 0; rank < size; rank++) {
        if (!found[rank].is_cause)
            continue;
        if (!found[rank].in_cycle)
            print_cause(&sightings[rank], rank, &found[rank], wall, out);
        else if (is_first_of_cycle(found, rank))
            print_cycle(sightings, size, found, rank, wall, out);
    }
    text_add(out, "  where each rank stands:\n");
    for (int rank = 0; rank < size; rank++) {
        if (found[rank].is_cause || lines < MOST_LINES)
            print_line(&sightings[rank], rank, &found[rank], wall, out);
        lines += !found[rank].is_cause;
    }
    if (lines > MOST_LINES)
        text_add(out, "    and %d more\n", lines - MOST_LINES);
}
