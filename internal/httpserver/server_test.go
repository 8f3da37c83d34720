// SPDX-License-Identifier: Apache-2.0

package httpserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// serve returns the address of a server that ends with the test.
func serve(t *testing.T, config *tls.Config, limits Limits, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, config, limits, h) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// closed waits until the server has closed the connection.
func closed(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("the server holds the connection")
	}
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	_, _ = io.WriteString(w, "hello")
})

func TestNoConnectionIsHeldForEver(t *testing.T) {
	short := 200 * time.Millisecond
	address := serve(t, nil, Limits{Header: short, Request: short, Answer: short, Idle: short}, hello)
	t.Run("a header that does not end", func(t *testing.T) {
		c := dial(t, address)
		send(t, c, "GET / HTTP/1.1\r\nHost: a\r\nX-")
		closed(t, c)
	})
	t.Run("a body that does not come", func(t *testing.T) {
		c := dial(t, address)
		send(t, c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nx")
		closed(t, c)
	})
	t.Run("no further request", func(t *testing.T) {
		c := dial(t, address)
		send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		closed(t, c)
	})
	t.Run("nothing at all", func(t *testing.T) { closed(t, dial(t, address)) })
}

func TestConnectionsAreBounded(t *testing.T) {
	for name, limits := range map[string]Limits{
		"in all":         {Connections: 3, PerClient: 100},
		"for one client": {Connections: 100, PerClient: 3},
	} {
		t.Run(name, func(t *testing.T) {
			address := serve(t, nil, limits, hello)
			var held []net.Conn
			for range 3 {
				c := dial(t, address)
				send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				response(t, c)
				held = append(held, c)
			}
			closed(t, dial(t, address))
			held[0].Close()
			for try := 0; ; try++ { // the server hears of it when it does
				c := dial(t, address)
				send(t, c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
				if _, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
					return
				} else if try > 200 {
					t.Fatalf("no room after one has gone: %v", err)
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

func response(t *testing.T, c net.Conn) *http.Response {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp
}

func TestReadOnly(t *testing.T) {
	address := serve(t, nil, Limits{}, ReadOnly(hello))
	for request, want := range map[string]int{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n":                             200,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n": 405,
		"PUT / HTTP/1.1\r\nHost: a\r\n\r\n":                             405,
		"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n":                          405,
		"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n":                           405,
		// Answered without its body, which never comes.
		"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999999\r\n\r\n": 200,
	} {
		c := dial(t, address)
		send(t, c, request)
		if resp := response(t, c); resp.StatusCode != want {
			t.Errorf("%q: %d, want %d", request, resp.StatusCode, want)
		}
	}
	resp, err := http.Head("http://" + address)
	if err != nil || resp.StatusCode != 200 {
		t.Errorf("HEAD: %v, %v", resp, err)
	}
}

func TestNoHTTP2(t *testing.T) {
	certificates := httptest.NewUnstartedServer(nil)
	certificates.StartTLS()
	defer certificates.Close()
	config := certificates.TLS.Clone()
	config.NextProtos = []string{"h2", "http/1.1"}
	address := serve(t, config, Limits{}, hello)
	c, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.ConnectionState().NegotiatedProtocol; got != "http/1.1" {
		t.Errorf("negotiated %q", got)
	}
	if len(config.NextProtos) != 2 {
		t.Error("the caller's configuration was changed")
	}
}

func TestAuthorized(t *testing.T) {
	api := fake.NewClientset()
	var questions int
	down := false
	api.PrependReactor("create", "tokenreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		questions++
		if down {
			return true, nil, errors.New("no API server")
		}
		review := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenReview)
		review.Status.Authenticated = strings.HasPrefix(review.Spec.Token, "known-")
		review.Status.User.Username = review.Spec.Token
		return true, review, nil
	})
	api.PrependReactor("create", "subjectaccessreviews", func(a clienttesting.Action) (bool, runtime.Object, error) {
		review := a.(clienttesting.CreateAction).GetObject().(*authorizationv1.SubjectAccessReview)
		at := review.Spec.NonResourceAttributes
		review.Status.Allowed = review.Spec.User == "known-good" && at.Verb == "get" && at.Path == "/metrics"
		return true, review, nil
	})
	h := Authorized(Reviews{api.AuthenticationV1().TokenReviews(), api.AuthorizationV1().SubjectAccessReviews()}, hello)
	ask := func(path, authorization string) int {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		if authorization != "" {
			r.Header.Set("Authorization", authorization)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if (w.Code == 200) != (w.Body.String() == "hello") {
			t.Errorf("%d with body %q", w.Code, w.Body)
		}
		return w.Code
	}
	for _, tc := range []struct {
		path, authorization string
		want                int
	}{
		{"/metrics", "", 401},
		{"/metrics", "Basic YTpi", 401},
		{"/metrics", "Bearer ", 401},
		{"/metrics", "Bearer unknown", 401},
		{"/metrics", "Bearer known-other", 403},
		{"/metrics", "Bearer known-good", 200},
		{"/healthz", "Bearer known-good", 403},
	} {
		if got := ask(tc.path, tc.authorization); got != tc.want {
			t.Errorf("%s with %q: %d, want %d", tc.path, tc.authorization, got, tc.want)
		}
	}
	before := questions
	for range 100 {
		ask("/metrics", "Bearer known-good")
		ask("/metrics", "")
	}
	if questions != before {
		t.Errorf("%d questions about what is known", questions-before)
	}
	down = true
	if got := ask("/metrics", "Bearer known-new"); got != 503 {
		t.Errorf("without the API server: %d", got)
	}
	limited := 0
	for i := range 1000 {
		if ask("/metrics", "Bearer guess-"+strings.Repeat("x", i)) == 429 {
			limited++
		}
	}
	if questions-before > 100 || limited < 900 {
		t.Errorf("1,000 guesses: %d questions to the API server, %d put off", questions-before, limited)
	}
}
