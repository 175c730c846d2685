package report

import "time"

// A Result is what one rollout was found to do, real or simulated. Rates are
// in bytes per second, times in seconds, sizes in bytes, so that its JSON needs
// no parser for units.
type Result struct {
	// Command is the command line that does the same again.
	Command string `json:"command"`
	// Kind is "rollout" (processes in network namespaces), "in-process" or
	// "simulate".
	Kind    string `json:"kind"`
	Machine string `json:"machine,omitempty"`
	// Busy is the share of the machine's cores that was busy during the
	// rollout, whoever with; 0 if that is not known.
	Busy    float64   `json:"busy,omitempty"`
	Started time.Time `json:"started"`
	Params  Params    `json:"params"`
	// Bound is the least time in which the links can carry the image to all
	// nodes if they all start at 0.
	Bound float64 `json:"bound"`
	Nodes []Node  `json:"nodes"`
	// Scheduler is the scheduler process, if there was one.
	Scheduler *Node `json:"scheduler,omitempty"`
	// OriginBytes is what left the origin, counted there.
	OriginBytes int64 `json:"originBytes"`
	// ImageBytes is the length of all layers.
	ImageBytes int64 `json:"imageBytes"`
	// Faults are those that were carried out, as they were asked for.
	Faults []string `json:"faults,omitempty"`
	// Grants is how many leases were granted and GrantSeconds the CPU time that
	// the decisions took; of a simulation only.
	Grants       int64   `json:"grants,omitempty"`
	GrantSeconds float64 `json:"grantSeconds,omitempty"`
	// SchedulerMemory is the heap that the decisions' tables took at most.
	SchedulerMemory int64 `json:"schedulerMemory,omitempty"`
}

// Params are what a rollout was asked to be.
type Params struct {
	Nodes  int   `json:"nodes"`
	Size   int64 `json:"size"` // of the image
	Layers int   `json:"layers"`
	// NodeRate is each way of a node's link; SlowRate that of the slow ones.
	NodeRate      float64 `json:"nodeRate"`
	OriginRate    float64 `json:"originRate"`
	SeedRate      float64 `json:"seedRate,omitempty"` // the scheduler's uplink
	SlowNodes     int     `json:"slowNodes,omitempty"`
	SlowRate      float64 `json:"slowRate,omitempty"`
	Zones         int     `json:"zones,omitempty"`
	CrossZoneRate float64 `json:"crossZoneRate,omitempty"`
	Delay         float64 `json:"delay,omitempty"` // one way
	Arrival       string  `json:"arrival"`         // together, or poisson:5/s
	Mode          string  `json:"mode"`            // shoal, no-scheduler or direct
	Security      string  `json:"security,omitempty"`
	Congestion    string  `json:"congestion,omitempty"` // TCP's, such as cubic
	Files         string  `json:"files,omitempty"`      // where those of the nodes were, such as "on disk (/tmp)"
	Warm          bool    `json:"warm,omitempty"`
	Seed          uint64  `json:"seed,omitempty"` // of everything that is random
}

// Node is what one node did. Times are since the start of the rollout.
type Node struct {
	Name string `json:"name"`
	Zone string `json:"zone,omitempty"`
	Slow bool   `json:"slow,omitempty"`
	// Arrived is when it began to pull, Done when it had every byte and all
	// were right; Done is 0 if it failed, and Error says why.
	Arrived float64 `json:"arrived"`
	Done    float64 `json:"done"`
	Error   string  `json:"error,omitempty"`
	// Killed says that a fault of the rollout ended it for good. It has not
	// failed: nobody could have got the image there.
	Killed bool `json:"killed,omitempty"`
	// Bound is the least time that its own pull can take.
	Bound float64 `json:"bound"`
	// Silence is the longest time that its client got no byte.
	Silence float64 `json:"silence"`
	// Resumed is how often its client had to ask again, for what was missing.
	Resumed int   `json:"resumed,omitempty"`
	Bytes   Bytes `json:"bytes"`
	// Layers is when each layer was complete, in manifest order.
	Layers   []float64 `json:"layers,omitempty"`
	Progress []Point   `json:"progress,omitempty"`
	// CPU is in seconds, RSS the largest, of its process; 0 if it had none of
	// its own.
	CPU float64 `json:"cpu,omitempty"`
	RSS int64   `json:"rss,omitempty"`
}

// Bytes are those that a node got, by where they came from.
type Bytes struct {
	Origin    int64 `json:"origin"`
	Seed      int64 `json:"seed"` // from a scheduler process
	Zone      int64 `json:"zone"` // from daemons in the node's zone
	Far       int64 `json:"far"`  // from daemons in other zones
	Disk      int64 `json:"disk"` // were here already
	Duplicate int64 `json:"duplicate"`
}

// A Point is how many bytes a node's client had at a time.
type Point struct {
	At    float64 `json:"at"`
	Bytes int64   `json:"bytes"`
}
