// SPDX-License-Identifier: Apache-2.0

package serve

import (
	"context"
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	reviewTimeout = 5 * time.Second
	// How long an answer of the API server's counts. A scraper asks it once a minute.
	keepGranted = time.Minute
	keepDenied  = 10 * time.Second
	// maxReviews is how many questions to the API server may be open, and
	// maxDecisions how many answers are kept: tokens cost nothing to make up.
	maxReviews   = 4
	maxDecisions = 256
)

// Reviewer lets requests through whose bearer token the API server knows and
// allows to get one path (nonResourceURLs of a ClusterRole), whatever path they
// ask for: Kubernetes lets everybody get /healthz, /livez and /readyz
// (system:public-info-viewer), where more stands here. It needs the right to
// create TokenReviews and SubjectAccessReviews, as system:auth-delegator gives.
// Safe for concurrent use.
type Reviewer struct {
	kube kubernetes.Interface
	path string
	open chan struct{}

	mu        sync.Mutex
	decisions map[[sha256.Size]byte]decision // by token
}

type decision struct {
	status int
	until  time.Time
}

// NewReviewer gives a Reviewer that asks kube who may get path.
func NewReviewer(kube kubernetes.Interface, path string) *Reviewer {
	return &Reviewer{kube: kube, path: path, open: make(chan struct{}, maxReviews), decisions: map[[sha256.Size]byte]decision{}}
}

// Protect passes on to h what is allowed.
func (r *Reviewer) Protect(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		token, ok := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		if !ok || token == "" {
			w.Header().Set("WWW-Authenticate", "Bearer")
			http.Error(w, "send the token of a ServiceAccount that may get "+r.path+" (Authorization: Bearer)", http.StatusUnauthorized)
			return
		}
		switch status := r.review(req.Context(), token); status {
		case http.StatusOK:
			h.ServeHTTP(w, req)
		case http.StatusForbidden:
			http.Error(w, "the token's owner may not get "+r.path+": bind it to a ClusterRole with this path in nonResourceURLs", status)
		default:
			http.Error(w, http.StatusText(status), status)
		}
	})
}

// review gives 200, 401, 403, or 503 if the API server could not be asked.
func (r *Reviewer) review(ctx context.Context, token string) int {
	q := sha256.Sum256([]byte(token))
	r.mu.Lock()
	d, ok := r.decisions[q]
	r.mu.Unlock()
	if ok && time.Now().Before(d.until) {
		return d.status
	}
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	select {
	case r.open <- struct{}{}:
		defer func() { <-r.open }()
	case <-ctx.Done():
		return http.StatusServiceUnavailable
	}
	status := r.ask(ctx, token)
	keep := keepDenied
	switch status {
	case http.StatusServiceUnavailable:
		return status // asked again by the next request
	case http.StatusOK:
		keep = keepGranted
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.decisions) >= maxDecisions {
		clear(r.decisions)
	}
	r.decisions[q] = decision{status, time.Now().Add(keep)}
	return status
}

func (r *Reviewer) ask(ctx context.Context, token string) int {
	known, err := r.kube.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: token},
	}, metav1.CreateOptions{})
	if err != nil {
		return http.StatusServiceUnavailable
	}
	if !known.Status.Authenticated {
		return http.StatusUnauthorized
	}
	user := known.Status.User
	extra := make(map[string]authorizationv1.ExtraValue, len(user.Extra))
	for k, v := range user.Extra {
		extra[k] = authorizationv1.ExtraValue(v)
	}
	allowed, err := r.kube.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user.Username, UID: user.UID, Groups: user.Groups, Extra: extra,
			NonResourceAttributes: &authorizationv1.NonResourceAttributes{Path: r.path, Verb: "get"},
		},
	}, metav1.CreateOptions{})
	switch {
	case err != nil:
		return http.StatusServiceUnavailable
	case !allowed.Status.Allowed:
		return http.StatusForbidden
	}
	return http.StatusOK
}
