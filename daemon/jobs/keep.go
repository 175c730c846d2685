package jobs

import (
	"slices"
	"time"
)

// keepNow writes e's file.
func (j *Jobs) keepNow(e *entry) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	return j.write(e)
}

// keepOrWarn is keepNow where nobody can be told.
func (j *Jobs) keepOrWarn(e *entry) (kept bool) {
	err := j.keepNow(e)
	if err != nil {
		j.log.Warn("job not written down: a restart would do it again", "error", err)
	}
	return err == nil
}

// keepSoon is keepOrWarn, unless the file was written a moment ago.
func (j *Jobs) keepSoon(e *entry) {
	e.writing.Lock()
	lately := time.Since(e.written) < max(pace, share*e.cost)
	e.writing.Unlock()
	if !lately {
		j.keepOrWarn(e)
	}
}

func (j *Jobs) write(e *entry) error {
	j.mu.Lock()
	job := e.job.clone()
	j.mu.Unlock()
	began := time.Now()
	err := j.store.save(job)
	e.written = time.Now()
	e.cost = e.written.Sub(began)
	return err
}

// prune forgets the oldest of the jobs that have ended, if they are too many.
func (j *Jobs) prune() {
	j.mu.Lock()
	var ended []Job
	for _, e := range j.entries {
		if e.job.State.Ended() {
			ended = append(ended, e.job)
		}
	}
	slices.SortFunc(ended, newestFirst)
	ended = ended[min(keep, len(ended)):]
	for _, job := range ended {
		delete(j.entries, job.ID)
	}
	j.mu.Unlock()
	for _, job := range ended {
		j.store.remove(job.ID)
	}
}
