package admin_test

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/shoal-project/shoal/daemon/admin"
)

// TestChecks: what the node finds arrives at the client as it is.
func TestChecks(t *testing.T) {
	t.Parallel()
	want := []admin.Check{
		{Name: "fleet", State: admin.CheckOK, Detail: "2 members"},
		{Name: "origin docker.io", State: admin.CheckFail, Detail: "no route", Advice: "see the firewall"},
	}
	for _, tt := range []struct{ said, want []admin.Check }{{want, want}, {nil, []admin.Check{}}} {
		srv := serve(t, admin.Config{Checks: func(context.Context) []admin.Check { return tt.said }})
		got, err := admin.NewClient(strings.TrimPrefix(srv.URL, "http://")).Checks(t.Context())
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%+v, %v, want %+v", got, err, tt.want)
		}
	}
}
