package rate

import (
	"errors"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want Rate
		back string // as String writes it
	}{
		{"100mbit", 12.5e6, "100mbit"},
		{"10gbit", 1.25e9, "10gbit"},
		{"500kbit", 62.5e3, "500kbit"},
		{"1tbit", 1.25e11, "1tbit"},
		{"1.5mbit", 187500, "1.5mbit"},
		{"1500kbit", 187500, "1.5mbit"},
		{" 20 Mbit/s ", 2.5e6, "20mbit"},
		{"1GBIT", 1.25e8, "1gbit"},
		{"25MB/s", 25e6, "200mbit"},
		{"25 MiB/s", 25 << 20, "25MiB/s"},
		{"1GiB/s", 1 << 30, "1GiB/s"},
		{"64KiB/s", 64 << 10, "64KiB/s"},
		{"64kiB/s", 64 << 10, "64KiB/s"},
		{"8kB/s", 8e3, "64kbit"},
		{"8KB/s", 8e3, "64kbit"},
		{"300B/s", 300, "2.4kbit"},
		{"8bit", 1, "8bit"},
		{"unlimited", 0, "unlimited"},
		{"Unlimited", 0, "unlimited"},
		{"0.1mbit", 12500, "100kbit"},
		{"333333333B/s", 333333333, "333333333B/s"},
	} {
		got, err := Parse(tt.text)
		if err != nil || got != tt.want {
			t.Errorf("Parse(%q) = %v, %v, want %v", tt.text, float64(got), err, float64(tt.want))
		}
		if got.String() != tt.back {
			t.Errorf("%q is written as %q, want %q", tt.text, got.String(), tt.back)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ text, says string }{
		{"", "200mbit or 25MB/s"},
		{"fast", "200mbit or 25MB/s"},
		{"100", "200mbit or 25MB/s"},
		{"mbit", "200mbit or 25MB/s"},
		{"-1mbit", "200mbit or 25MB/s"},
		{"+1mbit", "200mbit or 25MB/s"},
		{"1e3mbit", "200mbit or 25MB/s"},
		{"1.2.3mbit", "200mbit or 25MB/s"},
		{".5mbit", "200mbit or 25MB/s"},
		{"5.mbit", "200mbit or 25MB/s"},
		{"100mbps", "200mbit or 25MB/s"}, // bits or bytes?
		{"100Mb/s", "200mbit or 25MB/s"},
		{"100mb/s", "200mbit or 25MB/s"},
		{"100MB", "200mbit or 25MB/s"},
		{"100mbit/h", "200mbit or 25MB/s"},
		{"NaNmbit", "200mbit or 25MB/s"},
		{"100 mbit 5", "200mbit or 25MB/s"},
		{"0", "200mbit or 25MB/s"},
		{"0mbit", "write unlimited"},
		{"0.0kB/s", "write unlimited"},
		{"0.1bit", "between 1bit"},
		{"9999999tbit", "between 1bit"},
		{strings.Repeat("9", 400) + "tbit", "200mbit or 25MB/s"},
	} {
		got, err := Parse(tt.text)
		if err == nil {
			t.Errorf("Parse(%.40q) = %v, want an error", tt.text, got)
			continue
		}
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("Parse(%.40q): error %q does not say %q", tt.text, err, tt.says)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"100mbit", "25MiB/s", "unlimited", "1.5 GB/s", "0.125B/s", "0mbit", "kB/s", "9999999tbit"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			if !errors.Is(err, ErrSyntax) || r != 0 {
				t.Fatalf("Parse(%q) = %v, %v", s, r, err)
			}
			return
		}
		if r != Unlimited && (r < minRate || r > maxRate) {
			t.Fatalf("Parse(%q) = %v, out of bounds", s, float64(r))
		}
		back, err := Parse(r.String())
		if err != nil || back != r {
			t.Fatalf("%q is %v, written as %q, read as %v, %v", s, float64(r), r.String(), float64(back), err)
		}
	})
}
