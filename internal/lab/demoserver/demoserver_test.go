// SPDX-License-Identifier: Apache-2.0

package demoserver

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAnswer(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	server := httptest.NewServer(Handler("pod-a", "2", func() time.Time { return now }))
	defer server.Close()
	response, err := http.Get(server.URL + "/anything")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var got Answer
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	want := Answer{ClientIP: "127.0.0.1", ServerIP: "127.0.0.1", Host: "pod-a", Time: now, Version: "2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:80":             "192.0.2.1",
		"[::ffff:192.0.2.1]:80":    "192.0.2.1",
		"[fe80::1%eth0]:80":        "fe80::1",
		"[2001:db8::1]:80":         "2001:db8::1",
		"somewhere without a port": "somewhere without a port",
	} {
		if got := address(in); got != want {
			t.Errorf("address(%q) = %q, want %q", in, got, want)
		}
	}
}
